"""A sentencepiece model as a fast tokenizer.

Knows: the fields of a sentencepiece file and the pipeline of normaliser, pre-tokeniser and decoder that splits text as
sentencepiece inside LLaVA's tokenizer does. Does not know: transformers' tokenizer classes or where files lie.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from workbench.errors import ModelError

UNIGRAM, BYTE_PAIR = 1, 2
CONTROL, USER_DEFINED = 3, 4
SPACE = "▁"


def read_proto(path: Path) -> Any:
    """The parsed sentencepiece file. Raises `ModelError` when it is not one."""
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:
        raise ModelError(str(path), found="a file that is not a sentencepiece model") from error
    if not proto.pieces or proto.trainer_spec.model_type not in (UNIGRAM, BYTE_PAIR):
        raise ModelError(str(path), found="no pieces, or a word or character model", expected="a BPE or unigram model")
    return proto


def build_backend(proto: Any, *, legacy: bool) -> Tokenizer:
    """The tokenizer of `proto`. `legacy`: a space mark before every run of text between control tokens; else only at
    the beginning of what is tokenised."""
    from transformers.tokenization_utils_base import generate_merges

    spec = proto.trainer_spec
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    if spec.model_type == BYTE_PAIR:
        vocab = {piece: index for index, (piece, _) in enumerate(pieces)}
        merges = generate_merges(vocab, pieces)
        model: Any = BPE(vocab, merges, unk_token=spec.unk_piece, fuse_unk=True, byte_fallback=spec.byte_fallback)
    else:
        model = Unigram(pieces, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)
    tokenizer = Tokenizer(model)
    own = [piece.piece for piece in proto.pieces if piece.type == USER_DEFINED]
    if own and spec.model_type == BYTE_PAIR:
        model.ignore_merges = True  # no merges make a piece that a user defined; `_set_pipeline` cuts it out
    _set_pipeline(tokenizer, proto.normalizer_spec, own, legacy)
    control = [piece.piece for piece in proto.pieces if piece.type == CONTROL]
    special = [AddedToken(token, normalized=False, special=True) for token in (*control, spec.unk_piece)]
    tokenizer.add_special_tokens(special)
    return tokenizer


def _set_pipeline(tokenizer: Tokenizer, spec: Any, own: list[str], legacy: bool) -> None:
    before: list[Any] = []
    if spec.precompiled_charsmap:
        before.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        before += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    splits: list[Any] = []
    if legacy:
        before += [normalizers.Prepend(SPACE)] if spec.add_dummy_prefix else []
        before.append(normalizers.Replace(" ", SPACE))
    else:
        scheme = "first" if spec.add_dummy_prefix else "never"
        splits.append(pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False))
    if own:
        longest_first = sorted(map(re.escape, own), key=len, reverse=True)
        splits.append(pre_tokenizers.Split(Regex("|".join(longest_first)), "isolated"))
    if before:
        tokenizer.normalizer = normalizers.Sequence(before)
    if splits:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    strip = [decoders.Strip(" ", left=1)] if spec.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
