"""A typed recipe of what to take out of a dataset: filters with their thresholds, run in the order of the file.

Knows: every filter's key, its thresholds and units. Does not know: YAML (`recipe_yaml.py`), or how a filter works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, ValidationError, model_validator

from workbench.curation import measure_filters as by
from workbench.curation.filters import Filter, broken, exact_duplicates, near_duplicates
from workbench.curation.text_measures import alphanumeric, character_repetition, special_characters, word_repetition
from workbench.errors import RecipeError
from workbench.model.sources import resolve
from workbench.recipe import Count, Section, find_recipe
from workbench.recipe_yaml import apply_overrides, explain, read_yaml


class Range(Section):
    """What stays lies from `min` to `max`, both included; one of them may be absent."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _possible(self) -> Range:
        if self.min is None and self.max is None:
            raise RecipeError(found="neither min nor max", expected="one of them, or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise RecipeError(found=f"min {self.min} above max {self.max}", expected="a range that holds something")
        return self


class Repeated(Range):
    length: Count = 10
    """So many characters, or words, make up the piece that is looked for again."""


class Judged(Range):
    model: str
    """Who judges: `tiny`, a folder, or a name on the Hub."""


class Unlike(Section):
    share: Annotated[float, Field(gt=0, lt=1)]
    """So much of all images is taken out, 0 to 1: those farthest from the images most like them."""
    model: str = "tiny"
    """The CLIP that says what is alike."""


class Filters(Section):
    """The filters there are; those that are given run, in the order given. `false` and null leave one out."""

    broken: bool | None = None
    """Files that cannot be read, or have gone since the import. Belongs first: what follows reads the others."""
    exact_duplicates: bool | None = None
    """All but one of the images whose files are equal."""
    near_duplicates: bool | None = None
    """All but one of the images that show the same picture."""
    width: Range | None = None
    """Pixels."""
    height: Range | None = None
    """Pixels."""
    aspect: Range | None = None
    """Width / height."""
    bytes: Range | None = None
    """Size of the file."""
    brightness: Range | None = None
    """Mean grey level, 0 black to 255 white."""
    contrast: Range | None = None
    """Standard deviation of the grey levels."""
    sharpness: Range | None = None
    """Variance of the Laplacian, near 0 for a blurred or empty picture; an enlarged one has less of it."""
    entropy: Range | None = None
    """Bits per pixel, 0 for one colour to 8."""
    characters: Range | None = None
    """Length of the caption in characters."""
    words: Range | None = None
    """Length of the caption in words."""
    script: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    """The scripts to keep: Latin, Cyrillic, Arabic, CJK, ..."""
    alphanumeric: Range | None = None
    """Share of letters and digits, 0 to 1."""
    special_characters: Range | None = None
    """Share of white space, digits, punctuation and symbols, 0 to 1."""
    character_repetition: Repeated | None = None
    """How much of the caption its most repeated pieces make up, 0 to 1."""
    word_repetition: Repeated | None = None
    """Share of the pieces of so many words that occur more than once, 0 to 1."""
    similarity: Judged | None = None
    """Cosine of picture and caption by a CLIP, -1 to 1."""
    perplexity: Judged | None = None
    """How surprising the caption is to a causal language model: 1 not at all."""
    matching: Judged | None = None
    """Probability, 0 to 1, that the caption fits, by a BLIP for image-text retrieval."""
    outliers: Unlike | None = None
    """Images unlike all others."""

    _order: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _in_order(cls, data: Any, handler: ModelWrapValidatorHandler[Filters]) -> Filters:
        made = handler(data)
        made._order = tuple(data) if isinstance(data, Mapping) else ()
        return made

    @property
    def given(self) -> dict[str, Any]:
        """What was asked of each filter that is to run, in the order of the file."""
        return {name: value for name in self._order if (value := getattr(self, name)) not in (None, False)}


class CurateRecipe(Section):
    """Which images are taken out of a dataset, and why."""

    kind: Literal["curate"]
    name: str
    """A short name."""
    text_as: str = "{text}"
    """What the shares of characters and words are measured on, for thresholds that were set on texts with something
    around them; `{text}` stands for the text."""
    engine: Literal["local", "ray"] | None = None
    """Where pictures are measured: by processes of this machine, or on a Ray cluster; by default $WORKBENCH_ENGINE, or
    local."""
    filters: Filters

    @classmethod
    def load(cls, path_or_name: str | Path, overrides: Iterable[str] = ()) -> CurateRecipe:
        """Read a YAML file, or a shipped recipe by its name, with an override, or several, such as
        `filters.similarity.min=0.25`.

        Raises `RecipeError` naming file and key.
        """
        path = find_recipe(path_or_name, "curate")
        data = read_yaml(path)
        changed = set(apply_overrides(data, overrides))
        if data.get("kind") != "curate":
            fix = "use it with workbench train" if "train" in data else "add the line kind: curate"
            raise RecipeError(path.name, found="a recipe of another kind", expected="kind: curate", fix=fix)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise explain(error, cls, path.name, changed) from None
        except RecipeError as error:
            raise RecipeError(f"{path.name}, filters", found=error.found, expected=error.expected) from None

    def steps(self) -> list[Filter]:
        """The filters to hand to `curate`. Raises `ModelError` for a missing model before anything is done."""
        for name, part in _PARTS.items():
            if name in self.filters.given:
                resolve(self.filters.given[name].model, part=part)
        return [self._step(name, value) for name, value in self.filters.given.items()]

    def _step(self, name: str, value: Any) -> Filter:
        if name in _PLAIN:
            return _PLAIN[name]()
        if name == "script":
            return by.scripts(value)
        if name == "outliers":
            return by.unlike_others(value.share, model=value.model)
        if name in _JUDGED:
            return _JUDGED[name](value.min, value.max, model=value.model)
        if name in _TEXT:
            measure = partial(_TEXT[name], length=value.length) if isinstance(value, Repeated) else _TEXT[name]
            shown = "{text}" if name in _LENGTHS else self.text_as
            return by.text_range(name.replace("_", " "), measure, value.min, value.max, text_as=shown)
        return by.image_range(name, value.min, value.max)


def _words(text: str) -> int:
    return len(text.split())


_PLAIN = {"broken": broken, "exact_duplicates": exact_duplicates, "near_duplicates": near_duplicates}
_JUDGED = {"similarity": by.similarity, "perplexity": by.perplexity, "matching": by.matching}
_TEXT: dict[str, Callable[..., float]] = {
    "characters": len,
    "words": _words,
    "alphanumeric": alphanumeric,
    "special_characters": special_characters,
    "character_repetition": character_repetition,
    "word_repetition": word_repetition,
}
_PARTS = {"similarity": "vision", "outliers": "vision", "perplexity": "language", "matching": ""}
"""Which of the tiny parts a filter's model may be."""
_LENGTHS = ("characters", "words")
