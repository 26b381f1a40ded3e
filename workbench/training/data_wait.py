"""How much of a run's time went into waiting for its next images, and what to say about it.

Knows: seconds waited and seconds in all, and where the images came from. Does not know: steps, losses.
"""

from __future__ import annotations

from workbench.training.features import FeatureStore

WORTH_TELLING = 0.1
"""Share of the time from which a person should know."""


class DataWait:
    """Seconds of this process since it began or went on."""

    def __init__(self, store: FeatureStore) -> None:
        self.store, self.waited, self.seconds = store, 0.0, 0.0

    def add(self, waited: float, seconds: float) -> dict[str, float]:
        """One step of `seconds`, of which it `waited`; returns both as they are logged: seconds and share (0-1)."""
        self.waited, self.seconds = self.waited + waited, self.seconds + seconds
        return {"data_wait": round(waited, 4), "data_wait_fraction": round(waited / seconds, 4)}

    @property
    def fraction(self) -> float:
        """Share of the time so far (0-1)."""
        return self.waited / self.seconds if self.seconds else 0.0

    @property
    def note(self) -> str:
        """A few words to stand after the loss, or nothing."""
        return f", {self.fraction:.0%} of the time waiting for data" if self.fraction > WORTH_TELLING else ""

    @property
    def told(self) -> str:
        """What was waited for and what to do, or nothing."""
        if self.fraction <= WORTH_TELLING:
            return ""
        store = self.store
        if not store.computed:
            source, fix = "opening images", "more processor cores or a faster disk would help"
        else:
            source = f"images ({store.computed:,} went through the tower, {store.read:,} came from the disk)"
            kept = "what is on the disk is read next time; train.feature_cache_gb says how much that may be"
            lost = "train.feature_cache: on keeps what the tower gives, as far as train.feature_cache_gb lets it"
            off = "with train.feature_cache: off the tower sees an image again whenever its turn comes"
            fix = off if not store.budget else kept if store.cache is not None and store.cache.writes else lost
        return f"{self.fraction:.0%} of the time was spent waiting for {source}: {fix}"
