"""Loading a tokenizer so that it splits text as the original does.

Knows: folders with a `tokenizer.json`, bare sentencepiece models, names on the Hub; which pipeline LLaVA's tokenizer
runs. Does not know: templates, images or conversations.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.errors import ModelError
from workbench.model.sources import NAME, small_files
from workbench.resources import as_path, expanded, tiny_folder

CONFIG = "tokenizer_config.json"
ALWAYS_LEADS = "always_leads_with_space"
"""In a tokenizer's settings: a space mark begins a text even where the text begins with a space."""
FILES = ["tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "chat_template*"]


def load_tokenizer(source: str | Path) -> Any:
    """A fast transformers tokenizer from a folder, a sentencepiece `tokenizer.model`, `tiny`, or a name on the Hub.

    A `tokenizer.json` is taken as it is. A sentencepiece model gets the pipeline that LLaVA's own tokenizer has: BOS
    added, and a space mark before every run of text (`legacy`), unless a `tokenizer_config.json` beside it says
    otherwise. Raises `ModelError` when there is no tokenizer or it cannot be read.
    """
    path = expanded(as_path(source, "tokenizer"), ModelError)
    if path.is_file():
        return _from_file(path)
    if not path.is_dir():
        path = tiny_folder() / "language" if str(source) == "tiny" else _download(str(source))
    for name in ("tokenizer.json", "tokenizer.model"):
        if (path / name).is_file():
            return _from_file(path / name)
    return _auto(path)


def _from_file(path: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    try:
        if path.suffix == ".json":
            return PreTrainedTokenizerFast.from_pretrained(str(path.parent))
        return _sentencepiece(path)
    except ModelError:
        raise
    except Exception as error:  # the readers below raise whatever their format calls for
        raise ModelError(str(path), found=f"a tokenizer that cannot be read ({error})") from error


def _sentencepiece(path: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    from workbench.model.sentencepiece import build_backend, read_proto

    beside = path.parent / CONFIG
    config = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    proto = read_proto(path)
    legacy = config.get("legacy") in (None, True)
    names = {key: _content(config.get(f"{key}_token")) for key in ("unk", "bos", "eos", "pad")}
    spec = proto.trainer_spec
    for key in ("unk", "bos", "eos"):
        if getattr(spec, f"{key}_id") >= 0:
            names[key] = names[key] or getattr(spec, f"{key}_piece")
    tokens = {f"{key}_token": value for key, value in names.items() if value}
    return PreTrainedTokenizerFast(
        tokenizer_object=build_backend(proto, legacy=legacy),
        add_bos_token=bool(config.get("add_bos_token", "bos_token" in tokens)),
        add_eos_token=bool(config.get("add_eos_token", False)),
        clean_up_tokenization_spaces=False,
        **({ALWAYS_LEADS: True} if proto.normalizer_spec.add_dummy_prefix and not legacy else {}),
        **tokens,
    )


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _auto(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:
        raise ModelError(
            str(folder), found="no tokenizer", expected="tokenizer.json, tokenizer.model, or vocab.json and merges.txt"
        ) from error
    return tokenizer


def _download(name: str) -> Path:
    """The few small files of a tokenizer on the Hub; from the cache where they were got before."""
    if not NAME.fullmatch(name):
        raise ModelError(name, found="no such folder or file", expected="a tokenizer, or a Hub name such as owner/name")
    return small_files(name, FILES)
