"""Where model parts come from: the shipped tiny parts, a folder, or a name on the Hugging Face Hub.

Knows: how a source becomes a local folder, and what must be said before a download starts: its size, its licence
gate, a missing network. Does not know: what the files mean.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from workbench.errors import CheckpointError, DiskError, ModelError, kind_of
from workbench.hub import describe, fetch, kept, size_and_licence
from workbench.resources import disk_errors, expanded, tiny_folder

WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model", "*.yaml"]
"""What is downloaded: weights as safetensors and settings; never a pickle."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def resolve(source: str | Path, *, part: str = "", say: Callable[[str], None] = print) -> Path:
    """A local folder for a source; `part` is `vision` or `language` when the source may be `tiny`.

    A Hub name may name a revision: `owner/name@refs/pr/1` (where a repository's safetensors sometimes wait).

    Raises `ModelError` if there is no such folder or Hub repository, if it is gated, if there is no network, or if
    it has no safetensors; `DiskError` if the download does not fit on the disk.
    """
    return resolve_parts({part: source}, say=say)[part]


def resolve_parts(sources: Mapping[str, str | Path], *, say: Callable[[str], None] = print) -> dict[str, Path]:
    """A local folder for each source, by part, as `resolve` does; nothing is downloaded before all are looked at."""
    folders = {part: local(source, part) for part, source in sources.items()}
    missing = [str(sources[part]) for part, folder in folders.items() if folder is None]
    sizes = [_look_at(name, say) for name in missing]
    _check_room(missing, sum(sizes))
    return {
        part: folder or fetch(str(sources[part]), ModelError, allow_patterns=WANTED) for part, folder in folders.items()
    }


def local(source: str | Path, part: str) -> Path | None:
    """The folder, if it is on this disk; None for a name that has to be looked for on the Hub."""
    if str(source) == "tiny" and part:
        return tiny_folder() / part
    if not isinstance(source, (str, Path)):
        raise ModelError("model", found=kind_of(source), expected="a folder, or a Hub name such as owner/name")
    folder = expanded(source, ModelError)
    if folder.is_dir():
        return folder.resolve()
    if not NAME.fullmatch(str(source)):
        expected = "a folder or a Hub name such as owner/name"
        raise ModelError(str(source), found="no such folder", expected=expected, fix=_near(folder))
    return _cached(str(source))


def check_there(*sources: str | Path | None) -> None:
    """Raise `ModelError`, as `resolve` does, for a source that is neither on this disk nor on the Hub.

    For commands, before they import what takes long: of a downloaded model nothing is asked.
    """
    for source in sources:
        if source is None or str(source) == "tiny" or expanded(source, ModelError).exists():
            continue
        if local(source, "") is None:
            _describe(str(source))


def small_files(name: str, patterns: Sequence[str]) -> Path:
    """The folder of a Hub repository's files of these patterns, which are not worth a word about their size.

    From the cache where the Hub cannot be asked. Raises `ModelError` as `resolve` does.
    """
    try:
        _describe(name)
    except ModelError:
        folder = kept(name, patterns)
        if folder is None:
            raise
        return folder
    return fetch(name, ModelError, allow_patterns=[*patterns])


def full_name(source: str | Path) -> str:
    """The source as it can be found again from another working directory."""
    path = expanded(source, ModelError)
    return str(path.resolve()) if path.exists() and str(source) != "tiny" else str(source)


def safetensors_files(folder: Path) -> list[Path]:
    """The weight files of a folder in transformers' layout, in order.

    Raises `ModelError`: missing, pickles only, or an index that names none.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(weight_map(index).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(str(folder), found=f"no {', '.join(missing)}", expected="every file its index lists")
        return [folder / name for name in names]
    if (folder / "card.yaml").is_file():
        raise ModelError(str(folder), found="a dataset", expected="a run, or a model folder in transformers' layout")
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise ModelError(
            str(folder),
            found=f"{pickles[0]}, a pickle that can run code when it is read",
            expected="model.safetensors",
            fix=f"read it for its tensors alone, once: workbench export {folder} OUT --as hf, and name OUT instead",
        )
    raise ModelError(str(folder), found="no model.safetensors", expected="a model folder in transformers' layout")


def weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, as an index of weights has it. Raises `CheckpointError` for an index that has none."""
    held = read_json(index).get("weight_map")
    files = list(held.values()) if isinstance(held, dict) else []
    odd = next((f"the file {kind_of(file)}" for file in files if not isinstance(file, str)), "")
    if odd or not files:
        found = f"a weight_map with {odd}" if odd else f"a weight_map that is {kind_of(held)}"
        expected = "the name of a file for each tensor"
        raise CheckpointError(str(index), found=found, expected=expected, fix="copy or download it again")
    return dict(held or {})


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds one mapping. Raises `ModelError` for anything else."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(str(path), found=f"no readable JSON ({error})", fix="copy or download it again") from error
    if not isinstance(held, dict):
        raise ModelError(str(path), found=f"a JSON {type(held).__name__}", expected="a JSON object")
    return held


def _cached(name: str) -> Path | None:
    """The folder of an earlier, complete download, found without any network."""
    folder = kept(name, WANTED)
    try:
        return folder if folder and safetensors_files(folder) and (folder / "config.json").is_file() else None
    except ModelError:  # not complete: it has to be downloaded
        return None


def _look_at(name: str, say: Callable[[str], None]) -> int:
    """Say size and licence of a repository on the Hub before anything is downloaded; returns the size in bytes."""
    info = _describe(name)
    weights = [file for file in info.siblings or [] if file.rfilename.endswith(".safetensors")]
    if not weights:
        fix = "look for a conversion among its pull requests and write owner/name@refs/pr/NUMBER; or download it to a "
        fix += "folder, and convert that once: workbench export FOLDER OUT --as hf"
        raise ModelError(name, found="no safetensors on the Hub", expected="weights that are not pickles", fix=fix)
    size, licence = size_and_licence(info, weights)
    say(f"{name}: {size / 1e9:.2f} GB to download, licence {licence or 'not stated'}")
    return size


def _describe(name: str) -> Any:
    """What the Hub says of a repository; a folder whose name is like it is asked about where the Hub has none."""
    try:
        return describe(name, ModelError)
    except ModelError as problem:
        if near := _near(Path(name)):
            raise ModelError(name, found=problem.found, fix=near) from problem
        raise


def _near(folder: Path) -> str:
    """A folder on this disk that may be meant, as a question; empty where there is none."""
    beside = folder.parent
    names = [one.name for one in beside.iterdir() if one.is_dir()] if beside.is_dir() else []
    near = get_close_matches(folder.name, names, 1)
    return f"did you mean {beside / near[0]}?" if near else ""


def _check_room(names: Sequence[str], size: int) -> None:
    if not names:
        return
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    with disk_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if size > free:
        found, expected = f"{free / 1e9:.1f} GB free in {cache}", f"{size / 1e9:.1f} GB for the download"
        raise DiskError(" and ".join(names), found=found, expected=expected, fix="make room, or set HF_HOME elsewhere")
