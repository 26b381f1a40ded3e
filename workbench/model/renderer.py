"""The only place where a conversation becomes ids and labels, and where a prompt becomes ids.

Knows: how the segments of a conversation are tokenised (as LLaVA does: what lies between two images in one go), which
ids are trained on (those of the answers' spans, found by character offsets), and where a shared prefix ends.
Does not know: pixels, how many tokens an image becomes (`expand` is told), batches or models.

The ids of a conversation begin with the ids of its prompt, wherever it is cut: each place where the assistant begins to
speak is a border that no token crosses.

Ids and labels are those of LLaVA's own functions (commit c121f04). On purpose different:
- what LLaVA leaves out of training without a word is an error here: an empty answer, a text that writes a separator or
  a control token, a last question without an answer, a conversation that the assistant begins;
- LLaVA finds labels again by counting the tokens of pieces. Where that goes wrong (with sentencepiece models that strip
  white space it trains on the colon before an answer; with chatml on hardly anything) labels are the answers' here;
- of several images in a question LLaVA keeps one mark; here all stay;
- an answer that begins with a newline, after a prompt that ends with one, does not share a token with it.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from tokenizers import Tokenizer, processors

from workbench.conversation import IMAGE_MARK, VIDEO_MARK, Conversation, Media, Video, check_conversation
from workbench.errors import ModelError, RenderError
from workbench.model.segments import Segment, answer_end, check_text, control_in_text, write
from workbench.model.templates import Template, chat_template, load_template
from workbench.model.tokenizers import ALWAYS_LEADS

IMAGE_TOKEN_INDEX = -200
IGNORE_INDEX = -100


@dataclass(frozen=True)
class Rendered:
    """A conversation as a model reads it. `ids` and `labels` are equally long; each image is one id of -200."""

    id: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    """The id where it is trained on, else -100. Not shifted."""
    images: tuple[Media, ...]
    """Images, and videos where the model reads them: as many as there are -200 in `ids`, in their order."""
    prefix: int
    """How many leading ids conversations about the same image share: through the last image of the first question."""
    text: str
    """The rendering as a person reads it, images as `<image>`, videos as `<video>`."""

    @property
    def pictures(self) -> int:
        """How many of its images are no videos."""
        return sum(not isinstance(image, Video) for image in self.images)

    @property
    def trained(self) -> int:
        """How many ids are trained on."""
        return sum(label != IGNORE_INDEX for label in self.labels)


class Renderer:
    """One tokenizer and one template, for a model that reads `videos` or refuses them.

    A sequence begins with BOS if the tokenizer adds one, or if its own chat template begins with one. Raises
    `ModelError` for a tokenizer without offsets, or one that has no single token for the template's end of an answer.
    """

    def __init__(self, tokenizer: Any, template: str | Template, *, videos: bool = False) -> None:
        self.tokenizer, self.videos = tokenizer, videos
        self.template = load_template(template)
        self._backend = _own_backend(tokenizer)
        self._plain = _own_backend(tokenizer)
        self._plain.encode_special_tokens = True
        self.bos: tuple[int, ...] = _begin(tokenizer)
        self.lead = _lead(tokenizer, self._backend)
        """When a space is written before what lies between two images, so that it begins with a space mark as in LLaVA:
        `never`, `missing` (unless there is one) or `always`. Needed where a tokenizer marks a text's beginning only."""
        added = tokenizer.added_tokens_decoder
        special = {id: token.content for id, token in added.items() if token.special}
        self._control = set(special) - {tokenizer.unk_token_id}
        self._cuts = {id: special[id] for id in self._control if _cuts(added[id])}
        marks = (IMAGE_MARK, VIDEO_MARK) if videos else (IMAGE_MARK,)
        self._forbidden = tuple(dict.fromkeys((*marks, *self.template.reserved, *special.values())))
        self.end_ids: tuple[int, ...] = self._ends()
        """The ids at which generation stops."""

    # --- public -------------------------------------------------------------------------------------------------

    def render(self, conversation: Conversation) -> Rendered:
        """The conversation with labels, for training: each answer and its end token are trained on, nothing else.

        Raises `RenderError`, naming conversation and message, for a last question without an answer, a text that writes
        a control token or a separator of the template, or a shape the template has no place for; `ConversationError`
        for an illegal conversation, one with an empty answer included.
        """
        _check_last(conversation, "assistant", "a conversation that ends with an answer, to train on")
        rendered = self._render(conversation)
        if not rendered.trained:
            raise RenderError(conversation.id, found="no token to train on", expected="at least one")
        return rendered

    def prompt(self, conversation: Conversation, *, literal: bool = False) -> Rendered:
        """The conversation up to where the assistant speaks; every label is -100. Raises as `render` does.

        literal: a control token that a message writes is read as the letters it is made of, and not refused: for
        questions of people who may write what they like.
        """
        _check_last(conversation, "user", "a question last: conversation.prompt")
        rendered = self._render(conversation, literal)
        return replace(rendered, labels=(IGNORE_INDEX,) * len(rendered.ids))

    def expand(self, rendered: Rendered, counts: Sequence[int], image_token_id: int) -> tuple[list[int], list[int]]:
        """`(ids, labels)` with the n-th -200 written out as `counts[n]` times `image_token_id`."""
        if len(counts) != len(rendered.images):
            expected = f"one for each of {len(rendered.images)} images"
            raise RenderError(rendered.id, found=f"{len(counts)} token counts", expected=expected)
        ids: list[int] = []
        labels: list[int] = []
        waiting = iter(counts)
        for id, label in zip(rendered.ids, rendered.labels, strict=True):
            count = next(waiting) if id == IMAGE_TOKEN_INDEX else 1
            ids += [image_token_id if id == IMAGE_TOKEN_INDEX else id] * count
            labels += [label] * count
        return ids, labels

    def chat_template(self) -> str:
        """The Jinja chat template that writes what this renderer writes."""
        return chat_template(self.template, bos=bool(self.bos), lead=self.lead, videos=self.videos)

    def fingerprint(self) -> str:
        """16 hexadecimal digits of SHA-256 over all that decides what ids a conversation becomes."""
        parts = (self._backend.to_str(), repr(self.template), self.bos, self.lead, self.tokenizer.eos_token)
        return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]

    # --- ids ----------------------------------------------------------------------------------------------------

    def _render(self, conversation: Conversation, literal: bool = False) -> Rendered:
        ends = self.tokenizer.bos_token or "", self.tokenizer.eos_token or ""
        segments = write(self.template, conversation, *ends, videos=self.videos)
        try:
            check_text(conversation, segments, self._forbidden)
            literal = False  # nothing to read otherwise: the ids are those of any other prompt
        except RenderError:
            if not literal:
                raise
        first = next(number for number, message in enumerate(conversation.messages) if message.role == "user")
        ids, labels = list(self.bos), [IGNORE_INDEX] * len(self.bos)
        prefix = 0
        chunk: list[Segment] = []
        for segment in (*segments, None):
            if segment is not None and segment.kind != "media":
                chunk.append(segment)
                continue
            for id, trained in self._letters(chunk) if literal else self._chunk(conversation, chunk):
                ids.append(id)
                labels.append(id if trained else IGNORE_INDEX)
            chunk = []
            if segment is not None:
                ids.append(IMAGE_TOKEN_INDEX)
                labels.append(IGNORE_INDEX)
                prefix = len(ids) if segment.message == first else prefix
        text = "".join(segment.text for segment in segments)
        return Rendered(conversation.id, tuple(ids), tuple(labels), conversation.media, prefix, text)

    def _chunk(self, conversation: Conversation, segments: list[Segment]) -> list[tuple[int, bool]]:
        """What lies between two images as (id, is it trained on)."""
        owners: list[Segment] = []  # of each character
        borders = []
        for segment in segments:
            if segment.trained and not (owners and owners[-1].trained):
                borders.append(len(owners))
            owners += [segment] * len(segment.text)
        pairs = []
        for id, start in zip(*self._tokens("".join(segment.text for segment in segments), borders), strict=True):
            owner = owners[start]
            if owner.kind == "text" and id in self._control:
                raise control_in_text(conversation, owner.message, self.tokenizer.convert_ids_to_tokens(id))
            pairs.append((id, owner.trained))
        return pairs

    def _letters(self, segments: list[Segment]) -> list[tuple[int, bool]]:
        """As `_chunk`, with the texts of messages tokenised apart from the template and without control tokens."""
        pairs = []
        for kind, run in groupby(segments, key=lambda segment: segment.kind):
            text = "".join(segment.text for segment in run)
            if kind == "text":
                ids = self._plain.encode(text, add_special_tokens=False).ids
                # One that is no "special" token for its tokenizer is still found in a text: it is left out.
                ids = [id for id in ids if id not in self._control]
            else:
                ids = self._encode(text, 0, len(text))[0]
            pairs += [(id, False) for id in ids]
        return pairs

    def _tokens(self, text: str, borders: list[int]) -> tuple[list[int], list[int]]:
        """Ids of `text` and the character each begins at; no token crosses a border.

        In the normal case these are the ids of the whole text. Where a tokenizer would merge across a border (an answer
        that begins with a newline after a prompt that ends with one) the text is tokenised anew from there. So the ids
        up to a border depend on nothing behind it.
        """
        ids: list[int] = []
        starts: list[int] = []
        base = border = 0  # what lies before `base` is settled; `head` is from there to `border`
        head: list[int] = []
        head_starts: list[int] = []
        for stop in (*borders, len(text)):
            whole, whole_starts = self._longer(text, base, stop, head, head_starts)
            if whole[: len(head)] != head or any(start < border for start in whole_starts[len(head) :]):
                ids, starts, base = ids + head, starts + head_starts, border
                whole, whole_starts = self._encode(text, base, stop)
            head, head_starts, border = whole, whole_starts, stop
        return ids + head, starts + head_starts

    def _longer(
        self, text: str, begin: int, end: int, head: list[int], head_starts: list[int]
    ) -> tuple[list[int], list[int]]:
        """As `_encode`, where `head` is what it gave up to an earlier end.

        A tokenizer cuts a text at its special tokens before it does anything else, so that no more than what follows
        the last one known is read again: a conversation of many turns is not read anew for each of them.
        """
        last = next((place for place in reversed(range(len(head))) if head[place] in self._cuts), None)
        if last is None or not text.startswith(self._cuts[head[last]], head_starts[last]):
            return self._encode(text, begin, end)
        begin = head_starts[last]
        ids, starts = self._encode(text, begin, end, lead="")
        return head[:last] + ids, head_starts[:last] + starts

    def _encode(self, text: str, begin: int, end: int, lead: str | None = None) -> tuple[list[int], list[int]]:
        """Ids of `text[begin:end]` and where in `text` each begins."""
        if begin == end:
            return [], []
        if lead is None:
            lead = " " if self.lead == "always" else ""  # a missing one is added by the tokenizer itself
        encoding = self._backend.encode(lead + text[begin:end], add_special_tokens=False)
        shift, last = begin - len(lead), end - 1
        return encoding.ids, [min(max(begin, start + shift), last) for start, _ in encoding.offsets]

    def _ends(self) -> tuple[int, ...]:
        eos, own = self.tokenizer.eos_token or "", self.tokenizer.eos_token_id
        end = answer_end(self.template, eos).lstrip(" ")
        ids, starts = self._encode("a" + end, 0, 1 + len(end))
        if not end or starts[-1] > 1:
            raise ModelError(
                f"template {self.template.name!r}",
                found=f"{end!r} at the end of an answer, which is no single token here" if end else "no end token",
                expected="a tokenizer with an end token, so that generation can stop",
                fix="use the template that the language model was trained with",
            )
        ends = [ids[-1]]
        if ids[-1] not in self._control:  # a newline, which may be one token with the last mark of a caption
            written = self.tokenizer.convert_ids_to_tokens(ids[-1])
            ends += sorted(id for token, id in self.tokenizer.get_vocab().items() if token.endswith(written))
        return tuple(dict.fromkeys([*ends, *([] if own is None else [own])]))


def _check_last(conversation: Conversation, role: str, expected: str) -> None:
    last = len(check_conversation(conversation).messages) - 1
    if conversation.messages[last].role != role:
        found = "an answer" if role == "user" else "a last question without an answer"
        raise RenderError(f"{conversation.id}, message {last}", found=found, expected=expected)


def _cuts(token: Any) -> bool:
    """Is this special token found before a text is normalised, whatever stands beside it?"""
    return not (token.normalized or token.lstrip or token.rstrip or token.single_word)


def _own_backend(tokenizer: Any) -> Tokenizer:
    """A copy of the fast tokenizer inside: no truncation that somebody may set, and the model's own offsets."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(type(tokenizer).__name__, found="a tokenizer without offsets", expected="a fast tokenizer")
    own = copy.deepcopy(backend)
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = False
    own.post_processor = processors.Sequence([])
    return own


def _begin(tokenizer: Any) -> tuple[int, ...]:
    begin, written = tokenizer.bos_token_id, tokenizer.chat_template
    if begin is None:
        return ()
    writes = isinstance(written, str) and written.lstrip("{- ").startswith("bos_token")
    return (begin,) if writes or tokenizer("a").input_ids[:1] == [begin] else ()


def _lead(tokenizer: Any, backend: Tokenizer) -> str:
    step = json.loads(backend.to_str())["pre_tokenizer"] or {}
    steps = step.get("pretokenizers", [step])
    if not any(each.get("type") == "Metaspace" and each.get("prepend_scheme") == "first" for each in steps):
        return "never"
    return "always" if tokenizer.init_kwargs.get(ALWAYS_LEADS) else "missing"
