"""YAML and JSON as people write them, dotted overrides, and one clear line for each mistake in a recipe.

Knows: how a file, an override or a pydantic error becomes a mapping or a `RecipeError`.
Does not know: which fields a recipe has; they are read off the model it is given.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from workbench.errors import RecipeError, kind_of
from workbench.resources import expanded


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 2e-4 is a number (PyYAML alone reads text), and a key given twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.MarkedYAMLError(problem=f"the key {twice!r} twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back: the text `1e3` is quoted."""


_NUMBER = re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def to_yaml(data: Mapping[str, Any]) -> str:
    """A mapping as YAML in its own order, so that `read_yaml` gives it back."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `RecipeError` naming file and line."""
    path = Path(path)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{path.name}{line}", found=f"broken YAML: {error.problem}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(path.name, found=str(error).splitlines()[0], expected="a readable YAML file") from None
    if not isinstance(data, dict):
        raise RecipeError(
            path.name, found=f"{type(data).__name__} at the top", expected="keys such as model: and train:"
        )
    return data


def read_json(path: str | Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises `RecipeError` naming file and line."""
    path = expanded(path, RecipeError)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RecipeError(f"{path.name}, line {error.lineno}", found=f"broken JSON: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        there = path.exists()
        found = getattr(error, "strerror", None) or str(error) if there else "no such file"
        raise RecipeError(str(path), found=found, expected="a readable JSON file") from None
    if not isinstance(data, dict):
        raise RecipeError(path.name, found=f"{type(data).__name__} at the top", expected="an object")
    return data


def apply_overrides(data: dict[str, Any], overrides: Iterable[str]) -> list[str]:
    """Write `dotted.key=value` texts, or one of them, into `data`, values read as YAML; returns the dotted keys."""
    changed = []
    given = [overrides] if isinstance(overrides, str) or not isinstance(overrides, Iterable) else overrides
    for text in given:
        if not isinstance(text, str):
            raise RecipeError("override", found=kind_of(text), expected="a text, for example train.lr=2e-4")
        key, separator, value = text.partition("=")
        if not separator or not all(key.split(".")):
            raise RecipeError(f"override {text!r}", found="no key=value", expected="for example train.lr=2e-4")
        *path, last = key.strip().split(".")
        section = data
        for name in path:
            below = section.get(name)
            section[name] = section = dict(below) if isinstance(below, Mapping) else {}
        try:
            section[last] = yaml.load(value, _Loader)  # noqa: S506 - a SafeLoader
        except yaml.YAMLError:
            raise RecipeError(f"override {text!r}", found=f"{value!r}", expected="a YAML value") from None
        changed.append(key.strip())
    _settle_model(data.get("model"), changed)
    _settle_data(data.get("data"), changed)
    return changed


PARTS, OF_PARTS = ("vision", "language"), ("projector", "vision_layer", "vision_select")
"""The fields of `model` that name parts, and those of how parts are joined: a checkpoint brings its own."""


def _settle_model(model: Any, changed: list[str]) -> None:
    """An override of the checkpoint takes the place of the file's parts and projector, and the other way round."""
    if not isinstance(model, dict):
        return
    rivals = {"checkpoint": (*PARTS, *OF_PARTS, "projector_from"), **dict.fromkeys(PARTS, ("checkpoint",))}
    for key, others in rivals.items():
        if f"model.{key}" in changed and model.get(key):
            for other in others:
                if f"model.{other}" not in changed:
                    model.pop(other, None)
    if any(f"model.{key}" in changed for key in OF_PARTS):  # someone chose it, so it is no longer as a run wrote it
        for part in PARTS:
            if model.get(part) is None:
                model.pop(part, None)


def _settle_data(data: Any, changed: list[str]) -> None:
    """An override by a dataset folder takes the place of the file's LLaVA JSON file with its `images`."""
    if not isinstance(data, dict) or "data.dataset" not in changed or "data.images" in changed:
        return
    if isinstance(data["dataset"], str) and not is_file(data["dataset"]):
        data.pop("images", None)


def on_dataset(place: str | Path) -> str:
    """The override by which a recipe reads another dataset, whatever its name looks like in YAML."""
    return f"data.dataset={json.dumps(str(place), ensure_ascii=False)}"


def is_file(place: str) -> bool:
    """Whether what a recipe names as a dataset is a LLaVA JSON or JSONL file."""
    return Path(place).suffix in (".json", ".jsonl")


# --- one clear line per mistake -------------------------------------------------------------------------------

EXPECTED = {
    "missing": "a value", "float_type": "a number", "int_type": "a whole number", "int_from_float": "a whole number",
    "bool_type": "true or false", "string_type": "text", "list_type": "a list", "tuple_type": "a list",
    "model_type": "keys below it", "model_attributes_type": "keys below it",
}  # fmt: skip


def explain(error: ValidationError, model: type[BaseModel], where: str, changed: set[str]) -> RecipeError:
    """The first mistake as a `RecipeError` for the file `where`; the others are named behind it.

    `model` knows the keys there are; `changed` holds the dotted keys that an override set.
    """
    # What is missing last: an unknown key, which is often why, says more.
    problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] == "missing")
    first = problems[0]
    key = _dotted(first["loc"])
    override = next((one for one in sorted(changed) if _overlap(one, key)), None)
    place = f"override {override}" if override else f"{where}, {key}"
    rest = [name for name in dict.fromkeys(_dotted(problem["loc"]) for problem in problems[1:]) if name != key]
    more = f"(also wrong: {', '.join(rest)})" if rest else ""
    if first["type"] == "extra_forbidden":
        near = _nearest(key, model)
        unknown = f"an unknown key {key!r}" if override and override != key else "an unknown key"
        parts = {"found": unknown, "fix": f"did you mean {near}?" if near else "remove it"}
    else:
        parts = {"found": _found(first), "expected": EXPECTED.get(first["type"], _expected(first))}
    if more:
        parts["fix"] = f"{parts.get('fix', '')} {more}".strip()
    return RecipeError(place, **parts)


def _overlap(one: str, other: str) -> bool:
    """Whether two dotted keys are the same, or one is a part of the other: `train` of `train.lr`."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)


def _found(problem: Any) -> str:
    if problem["type"] == "missing":
        return "nothing"
    value = problem["input"]
    kinds = {str: "text ", bool: "", int: "the number ", float: "the number ", dict: "keys ", list: "the list "}
    return f"{kinds.get(type(value), '')}{value!r}"


def _expected(problem: Any) -> str:
    """Pydantic's own words without its frame: 'Input should be greater than 0' -> 'greater than 0'."""
    return problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")


def _nearest(key: str, model: type[BaseModel]) -> str | None:
    """The known dotted key most like an unknown one: by its own section first, then by its last part anywhere."""
    known = list(_keys(model))
    section, _, leaf = key.rpartition(".")
    plain = ".".join(part for part in section.split(".") if not part.isdecimal())  # `data.mix.0` is one of `data.mix`
    names = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == plain]
    siblings = {name: f"{section}.{name}" if section else name for name in names}
    near = difflib.get_close_matches(leaf, list(siblings), 1, 0.6)
    if near:
        return siblings[near[0]]
    anywhere = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(leaf, list(anywhere), 1, 0.6)
    return anywhere[near[0]] if near else None


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):  # a section, or a list of sections
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, f"{prefix}{name}.")
