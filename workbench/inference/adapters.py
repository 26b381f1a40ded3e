"""Several adapters on one model, one of them in place at a time: LoRA and projector (with its newline), by name.

Knows: what of a run lies on its base, whether another run lies on the same one, and how one makes way for another.
Does not know: requests, or which adapter is wanted when.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import nn

from workbench.errors import ModelError
from workbench.model.checkpoint import MANIFEST, PREFIXES, checkpoint_folder, read_manifest, read_projector
from workbench.model.llava import NEWLINE, Llava
from workbench.model.lora import ADAPTER, VISION, adapted, adapter_parameters, attach_config, has_adapter
from workbench.model.proof import check_files, weight_hashes
from workbench.model.tensors import fill, read_tensors

Projector = tuple[nn.Module, nn.Parameter | None]
"""A projector, and the newline that LLaVA-NeXT has beside it."""
BASE = "base"
"""The name of the model without any adapter."""


class Adapters:
    """What can be put on `llava`. None is the model as it was given."""

    def __init__(self, llava: Llava) -> None:
        self.llava = llava
        own = ADAPTER if has_adapter(llava.model) else None
        self._places: dict[str | None, tuple[str | None, Projector]] = {None: (own, (llava.projector, llava.newline))}
        """Name -> peft's name of its LoRA (None: none), and its projector."""
        self._in_place: str | None = None

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: str | None) -> bool:
        return name in self._places

    @property
    def seen_through(self) -> bool:
        """Whether an adapter lies on the vision tower, so that images look different through each."""
        return next(adapted(self.llava.model, VISION), None) is not None

    def add_base(self) -> None:
        """The model before this run trained it, under the name `base`: no LoRA, and the projector it began with.

        A projector that began with nothing stays as it was trained. Raises `ModelError` where more than that trained.
        """
        llava = self.llava
        if llava.spec.get("trained"):
            found = f"a run that trained its {' and '.join(llava.spec['trained'])}"
            raise ModelError(str(llava.spec.get("llava", "base")), found=found, expected="adapter and projector only")
        source = llava.folders.get("llava") or llava.spec.get("projector_from")
        own = llava.projector, llava.newline
        self._places[BASE] = None, own if source is None else self._projector(*read_projector(source))

    def add(self, name: str, source: str | Path) -> None:
        """The adapter and projector of another run or checkpoint on the same base. Raises `ModelError` otherwise."""
        folder = checkpoint_folder(source)
        if not (folder / MANIFEST).is_file():
            raise ModelError(str(source), found="a whole model", expected="a run or a checkpoint on the same base")
        manifest = read_manifest(folder)
        check_files(folder, manifest["files"])
        self._check_same(folder, manifest)
        projector = self._projector(*read_projector(folder))
        lora = None
        if (folder / "adapter").is_dir():
            lora = f"{ADAPTER}_{len(self._places)}"
            attach_config(self.llava, LoraConfig.from_pretrained(str(folder / "adapter")), name=lora)
            tensors = read_tensors(folder / "adapter" / "adapter_model.safetensors")
            fill(adapter_parameters(self.llava.model, lora), tensors, where=str(folder / "adapter"))
        self._places[name] = lora, projector
        self.use(self._in_place)  # peft puts what it has just made in place

    def use(self, name: str | None) -> None:
        """Put this one in place of whatever is there."""
        lora, (projector, newline) = self._places[name]
        for _, layer in adapted(self.llava.model):
            asked = {id(weight): weight.requires_grad for weight in layer.parameters()}
            if lora is not None:
                layer.set_adapter(lora)
            layer.enable_adapters(lora is not None)
            for weight in layer.parameters():  # peft takes an adapter in place for one that trains
                weight.requires_grad_(asked[id(weight)])
        self.llava.model.model.multi_modal_projector = projector
        if newline is not None:
            self.llava.model.model.image_newline = newline
        self._in_place = name

    @contextmanager
    def placed(self, name: str | None) -> Iterator[None]:
        """This one in place inside, afterwards what was there before."""
        before = self._in_place
        self.use(name)
        try:
            yield
        finally:
            self.use(before)

    def _check_same(self, folder: Path, manifest: dict[str, Any]) -> None:
        """Raise `ModelError` unless a checkpoint lies on this very model, and sees and speaks as it does."""
        mine, other = self.llava.spec, manifest["spec"]
        keys = ("vision_layer", "vision_select", "projector", "template", "image_mode", "pinpoints", "load", "trained")
        differs = [key for key in keys if (mine.get(key) or None) != (other.get(key) or None)]
        if differs:
            found = f"another {differs[0]}: {other.get(differs[0])!r}"
            raise ModelError(str(folder), found=found, expected=f"{mine.get(differs[0])!r}, as the model it is put on")
        for part, held in manifest["base"].items():
            hashes = weight_hashes(folder / "base" / part) if held["copied"] else held["sha256"]
            if part not in self.llava.folders or weight_hashes(self.llava.folders[part]) != hashes:
                raise ModelError(str(folder), found=f"another base: {held['source']}", expected="the one it is put on")

    def _projector(self, kind: str, tensors: dict[str, Any]) -> Projector:
        """A projector like the model's, with these weights; the model's newline where they bring none."""
        made = copy.deepcopy(self.llava.projector).requires_grad_(False).eval()
        names = {PREFIXES["projector"][0] + name: weight for name, weight in made.named_parameters()}
        newline = self.llava.newline
        if newline is not None and NEWLINE in tensors:
            newline = names[NEWLINE] = nn.Parameter(newline.detach().clone(), requires_grad=False)
        fill(names, tensors, where=f"a {kind} projector")
        return made, newline
