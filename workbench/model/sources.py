"""Where model parts come from: the shipped tiny parts, a folder, or a name on the Hugging Face Hub.

Knows: how a source becomes a local folder, and what must be said before a download starts: its size, its licence
gate, a missing network. Does not know: what the files mean.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.errors import DiskError, ModelError
from workbench.resources import tiny_folder

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
    if str(source) == "tiny" and part:
        return tiny_folder() / part
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if not NAME.fullmatch(str(source)):
        raise ModelError(str(source), found="no such folder", expected="a folder or a Hub name such as owner/name")
    return _cached(str(source)) or _download(str(source), say)


def full_name(source: str | Path) -> str:
    """The source as it can be found again from another working directory."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.is_dir() and str(source) != "tiny" else str(source)


def safetensors_files(folder: Path) -> list[Path]:
    """The weight files of a folder in transformers' layout, in order. Raises `ModelError`: missing, or pickles only."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(str(folder), found=f"no {', '.join(missing)}", expected="every file its index lists")
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise ModelError(
            str(folder),
            found=f"{pickles[0]}, a pickle that can run code when it is read",
            expected="model.safetensors",
            fix="convert it once with save_pretrained of transformers on a machine you can lose",
        )
    raise ModelError(str(folder), found="no model.safetensors", expected="a model folder in transformers' layout")


def _cached(name: str) -> Path | None:
    """The folder of an earlier, complete download, found without any network."""
    from huggingface_hub import snapshot_download

    try:
        repository, revision = _repository(name)
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        safetensors_files(folder)
    except Exception:  # not there, or not complete: both mean that it has to be downloaded
        return None
    return folder if (folder / "config.json").is_file() else None


def _download(name: str, say: Callable[[str], None]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    info = _describe(name)
    weights = [file for file in info.siblings or [] if file.rfilename.endswith(".safetensors")]
    if not weights:
        fix = "look for a conversion among its pull requests and write owner/name@refs/pr/NUMBER"
        raise ModelError(name, found="no safetensors on the Hub", expected="weights that are not pickles", fix=fix)
    size = sum(file.size or 0 for file in weights)
    card: dict[str, Any] = dict(info.card_data or {})
    say(f"{name}: {size / 1e9:.2f} GB to download, licence {card.get('license', 'not stated')}")
    cache = Path(HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if size > free:
        raise DiskError(name, found=f"{free / 1e9:.1f} GB free", expected=f"{size / 1e9:.1f} GB for the download")
    repository, revision = _repository(name)
    return Path(snapshot_download(repository, revision=revision, allow_patterns=WANTED))


def _repository(name: str) -> tuple[str, str | None]:
    repository, _, revision = name.partition("@")
    return repository, revision or None


def _describe(name: str) -> Any:
    """What the Hub says about a repository before anything is downloaded; one quick question, no retries."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    api, (repository, revision) = HfApi(), _repository(name)
    offline = "connect once, or give a folder that holds the files"
    try:
        info = api.model_info(repository, revision=revision, files_metadata=True, timeout=10)
        if info.gated:
            api.auth_check(repository)
    except GatedRepoError as error:
        page = f"accept the licence at https://huggingface.co/{repository} and log in with `hf auth login`"
        raise ModelError(name, found="a licence gate that this login has not passed", fix=page) from error
    except RepositoryNotFoundError as error:
        raise ModelError(name, found="neither a folder nor a repository on the Hub", fix="check the name") from error
    except HfHubHTTPError as error:
        raise ModelError(name, found=f"the Hub's answer {error.response.status_code}", fix="try again later") from error
    except Exception as error:  # the many shapes of "no network": offline mode, DNS, refused, timed out
        raise ModelError(name, found=f"no way to the Hub ({type(error).__name__})", fix=offline) from error
    return info
