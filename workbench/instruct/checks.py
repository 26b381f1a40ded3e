"""Checks of what a teacher wrote: each a function with a name and a reason, run in order, none of them a model.

Knows: the checks by name, what each finds, and how a person adds one.
Does not know: what becomes of a rejected conversation (`loop.py`), or how claims are read (`claims.py`).

    @add_check("answers must not shout")
    def shouting(conversation, material, context):
        return next((answer for _, _, answer in pairs(conversation) if answer.isupper()), None)
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from workbench.conversation import IMAGE_MARK, Conversation, check_conversation
from workbench.errors import ConversationError, DataError
from workbench.instruct.claims import Claim, contradicted
from workbench.instruct.facts import ground_of
from workbench.instruct.material import Material
from workbench.instruct.questions import extract
from workbench.model.templates import load_template, template_names

WORDS: dict[str, tuple[int, int]] = {
    "caption": (2, 60),
    "conversation": (1, 150),
    "detail": (10, 400),
    "reasoning": (2, 300),
    "short_answer": (1, 8),
    "multiple_choice": (1, 20),
    "grounding": (1, 20),
    "refusal": (1, 100),
    "classify": (1, 20),
}
"""Words of an answer, fewest and most, by task."""
OTHER_WORDS = (1, 400)
SCRIPTS = ("latin", "cjk", "hangul", "cyrillic", "arabic", "greek", "hebrew", "devanagari", "thai", "bengali", "tamil")
CONTROL = (IMAGE_MARK, "<video>", "<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
"""Control tokens that no template of ours names; `<|...|>` of any kind are control tokens too."""
SCRIPT_SHARE = 0.7
"""Of the letters, at least, in the wanted script; the rest may quote a sign."""
ALIKE = 0.8
"""Share of word triples that two conversations have in common from which on they are near-duplicates."""


@dataclass(frozen=True)
class Context:
    """What a check may know besides the conversation and its image."""

    others: Sequence[Conversation] = ()
    """Conversations of the same image that are already kept."""
    script: str = "latin"
    """What answers are to be written in: one of `SCRIPTS` (cjk: Chinese and Japanese)."""

    def __post_init__(self) -> None:
        if self.script not in SCRIPTS:
            raise DataError("checks", found=f"script {self.script!r}", expected=f"one of {', '.join(SCRIPTS)}")


Find = Callable[[Conversation, Material, Context], str | None]


@dataclass(frozen=True)
class Check:
    """`find` returns what was found, in a few words, or None."""

    name: str
    reason: str
    """What it means that something was found."""
    find: Find


@dataclass(frozen=True)
class Rejection:
    """Why a conversation is not kept: the name of a check and what it found."""

    name: str
    found: str


@dataclass(frozen=True)
class Contradiction:
    """A claim that the annotations contradict. `claim.span` are characters of the text of message number `message`."""

    message: int
    claim: Claim


CHECKS: dict[str, Check] = {}
"""The checks in the order they run."""


def add_check(reason: str) -> Callable[[Find], Find]:
    """Add a check of your own, for this session, as a decorator; its name is the function's."""
    if not isinstance(reason, str):
        raise DataError("add_check", found="no reason", expected='@add_check("what it means")')

    def add(find: Find) -> Find:
        CHECKS[find.__name__] = Check(find.__name__, reason, find)
        return find

    return add


def check(
    conversation: Conversation,
    material: Material,
    context: Context | None = None,
    *,
    checks: Iterable[Check | str] | None = None,
) -> list[Rejection]:
    """What is wrong with a conversation; empty where nothing is. `checks`: names or `Check`s, default all of `CHECKS`.

    Raises `DataError` for an unknown name.
    """
    context = context or Context()
    run = [_find_check(one) for one in (CHECKS.values() if checks is None else checks)]
    found = [(one.name, one.find(conversation, material, context)) for one in run]
    return [Rejection(name, what) for name, what in found if what]


def _find_check(one: Check | str) -> Check:
    if isinstance(one, Check):
        return one
    if one not in CHECKS:
        raise DataError("checks", found=f"check {one!r}", expected=f"one of {', '.join(CHECKS)}")
    return CHECKS[one]


def pairs(conversation: Conversation) -> Iterator[tuple[int, str, str]]:
    """Each answer with its question: the number of the answer's message, the question, the answer."""
    question = ""
    for number, message in enumerate(conversation.messages):
        if message.role == "user":
            question = message.text
        elif message.role == "assistant":
            yield number, question, message.text
            question = ""


def contradictions(conversation: Conversation, material: Material) -> list[Contradiction]:
    """Every claim that the annotations contradict, with the characters that make it, for a panel to mark."""
    ground = ground_of(material)
    return [
        Contradiction(number if claim.of == "answer" else number - 1, claim)
        for number, question, answer in pairs(conversation)
        for claim in extract(question, answer, ground.reader)
        if contradicted(claim, ground)
    ]


# --- the checks that ship -------------------------------------------------------------------------------------

_MARKS = (
    re.compile(r"^\s*={3,}\s*$", re.MULTILINE),
    re.compile(
        r"^[ \t*#]*(?:question|answer|q|a(?!.*\n\s*b[ \t]*:))[ \t]*\d*[*]*[ \t]*:", re.IGNORECASE | re.MULTILINE
    ),
    re.compile(r"```|\{\{|\{%|<</?\w+>>"),
    re.compile(r"^\s*(?:\{\s*\"|\[\s*[{\"])|\"\s*[}\]]\s*$|\"(?:question|answer|text|turns|role|content)\"\s*:"),
)
_REFUSES = (
    re.compile(r"\bas an? (?:ai|language model|artificial intelligence|text[- ]based)\b", re.IGNORECASE),
    re.compile(
        r"\bi(?:['’]m| am)? (?:can['’]?t|cannot|can not|unable to|not able to|won['’]t|do not have the ability to) "
        r"(?:(?:directly |actually )?(?:view|access|open|display|process|analy[sz]e|help|assist|comply|provide|answer)"
        r"|see (?:the |this |your |any )?(?:images?|pictures?|photos?)\b)",
        re.IGNORECASE,
    ),
    re.compile(r"\bi (?:do not|don['’]t) have (?:access|the ability|enough information)", re.IGNORECASE),
    re.compile(
        r"\b(?:no|the) (?:image|picture|photo) (?:was|is|has been)(?: not|n['’]t)? (?:provided|attached|uploaded)", re.I
    ),
    re.compile(r"\bplease (?:provide|upload|share|attach) (?:the|an?|your|more)\b", re.IGNORECASE),
)
_TELLS = re.compile(
    r"\b(?:according to|based on|from|given|in|per) (?:the |these |this |its |all )*(?:provided |given |image |above )*"
    r"(?:captions?|descriptions?|annotations?|bounding box(?:es)?|coordinates|metadata|object list)\b"
    r"|\bbounding[- ]box(?:es)?\b|\bthe (?:provided |given )?(?:captions?|descriptions?|annotations?) (?:\w+ )?"
    r"(?:says?|states?|mentions?|describes?|indicates?|tells?|suggests?|provided|given|above|lists?|do(?:es)?)\b"
    r"|\b(?:provided|given) (?:captions?|descriptions?|annotations?|information)\b|\bas an ai\b|\blanguage model\b",
    re.IGNORECASE,
)
_SHOUTED_ROLE = re.compile(r"\b(?:USER|ASSISTANT|HUMAN|Human|Assistant|User|GPT)\s*:")
_LINE_ROLE = re.compile(r"^[ \t*#]*(?:user|assistant|human|gpt)[*]*[ \t]*:", re.IGNORECASE | re.MULTILINE)
_INSTRUCTS = re.compile(r"\s*(?:choose|answer|pick|select|options?|\(?a[.):])", re.IGNORECASE)
_ASKS_CAPTION = re.compile(
    r"\b(?:briefly|brief|short|concise|captions?|summari[sz]e|one sentence|a few words)\b", re.IGNORECASE
)
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+(?:['’-][^\W_]+)*")


def words(text: str) -> list[str]:
    """The words of a text in small letters; a Chinese or Japanese character is one each."""
    return _WORD.findall(text.lower())


def _shown(text: str, match: re.Match[str] | None = None) -> str:
    if match is not None:
        text = text[max(0, match.start() - 20) : match.end() + 20]
    line = " ".join(text.split())
    return repr(line if len(line) <= 80 else f"{line[:77]}...")


def _first_match(texts: Iterable[tuple[str, str]], patterns: Sequence[re.Pattern[str]]) -> str | None:
    for where, text in texts:
        for pattern in patterns:
            if match := pattern.search(text):
                return f"{where}: {_shown(text, match)}"
    return None


def _answers(conversation: Conversation) -> list[tuple[str, str]]:
    return [(f"message {number}", answer) for number, _, answer in pairs(conversation)]


def _texts(conversation: Conversation) -> list[tuple[str, str]]:
    return [(f"message {number}", message.text) for number, message in enumerate(conversation.messages)]


@add_check("the reply was not taken apart cleanly: wrong turns, or marks of its form left in the text")
def format(conversation: Conversation, material: Material, context: Context) -> str | None:
    try:
        check_conversation(conversation)
    except ConversationError as problem:
        if "an empty" not in problem.found:
            return problem.found
    if conversation.messages and conversation.messages[-1].role == "user":
        return "a question without an answer"
    return _first_match(_texts(conversation), _MARKS)


@add_check("there is no text where there should be some")
def empty(conversation: Conversation, material: Material, context: Context) -> str | None:
    nothing = ("", "n/a", "null", "undefined", "tbd")
    for where, text in _texts(conversation):
        bare = text.strip().lower().strip(".")
        if bare in nothing or not any(letter.isalnum() for letter in bare):
            return f"{where}: {_shown(text)}"
    return None


@add_check("the teacher declined to answer, or says that it sees no image")
def refusal(conversation: Conversation, material: Material, context: Context) -> str | None:
    return _first_match(_answers(conversation), _REFUSES)


@add_check("an answer is too short or too long for its task")
def length(conversation: Conversation, material: Material, context: Context) -> str | None:
    fewest, most = WORDS.get(conversation.task or "", OTHER_WORDS)
    for number, _, answer in pairs(conversation):
        count = len(words(answer))
        if answer.strip() and not fewest <= count <= most:
            return f"message {number}: {count} words, not {fewest} to {most}"
    return None


@add_check("an answer only repeats a caption or its question, or a question is asked twice")
def repeats(conversation: Conversation, material: Material, context: Context) -> str | None:
    captions = {tuple(words(text)) for text in material.captions}
    asked: set[tuple[str, ...]] = set()
    for number, question, answer in pairs(conversation):
        said, wanted = tuple(words(answer)), tuple(words(question))
        if said and said == wanted:
            return f"message {number}: the answer is the question"
        if wanted in asked:
            return f"message {number - 1}: the same question again"
        asked.add(wanted)
        is_caption = conversation.task == "caption" or _ASKS_CAPTION.search(question)
        if len(said) > 3 and said in captions and not is_caption:
            return f"message {number}: the caption {_shown(answer)}"
    return None


@add_check("the text gives away what the teacher was told instead of speaking of the image")
def mentions(conversation: Conversation, material: Material, context: Context) -> str | None:
    texts = _answers(conversation) if conversation.task == "grounding" else _texts(conversation)
    return _first_match(texts, [_TELLS])


@add_check("user and assistant are mixed up")
def roles(conversation: Conversation, material: Material, context: Context) -> str | None:
    found = _first_match(_texts(conversation), [_SHOUTED_ROLE, _LINE_ROLE])
    for number, question, answer in pairs(conversation):
        if answer.rstrip().endswith("?") and question.strip() and "?" not in question and number <= 2:
            found = found or f"message {number}: a question answers a statement, {_shown(answer)}"
        rest = question.partition("?")[2]
        said = words(answer)
        if (
            rest
            and said
            and not _INSTRUCTS.match(rest)
            and (words(rest) == said or re.match(r"\s*(yes|no)\b", rest.lower()))
        ):
            found = found or f"message {number - 1}: a question with its answer, {_shown(question)}"
    return found


@add_check("the text holds a control token of a chat template")
def control(conversation: Conversation, material: Material, context: Context) -> str | None:
    return _first_match(_texts(conversation), [_control_pattern()])


@cache
def _control_pattern() -> re.Pattern[str]:
    reserved = {word for name in template_names() for word in load_template(name).reserved}
    tokens = sorted({*CONTROL, *reserved}, key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, tokens), r"<\|[^|<>\s]{1,40}\|>"]))


@add_check("the text is not written in the wanted script")
def language(conversation: Conversation, material: Material, context: Context) -> str | None:
    for where, text in _texts(conversation):
        scripts = Counter(_script(letter) for letter in text if letter.isalpha())
        if scripts and scripts[context.script] < SCRIPT_SHARE * scripts.total():
            return f"{where}: {scripts.most_common(1)[0][0]} letters, not {context.script}: {_shown(text)}"
    return None


@cache
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "unknown").lower().replace("fullwidth ", "").split()[0]
    return "cjk" if name in ("hiragana", "katakana", "halfwidth") else name


@add_check("the same was already said of this image")
def near_duplicate(conversation: Conversation, material: Material, context: Context) -> str | None:
    own = _triples(conversation)
    for other in context.others:
        if other.id == conversation.id:
            continue
        theirs = _triples(other)
        alike = len(own & theirs) / max(1, len(own | theirs))
        if alike >= ALIKE:
            return f"{alike:.0%} of the word triples of {other.id}"
    return None


def _triples(conversation: Conversation) -> set[tuple[str, ...]]:
    """Runs of three words over each question with its answer, so that a short answer counts."""
    made: set[tuple[str, ...]] = set()
    for _, question, answer in pairs(conversation):
        said = ["", *words(question), "", *words(answer), ""]
        made |= set(zip(said, said[1:], said[2:], strict=False))
    return made


@add_check("what is said of the image contradicts its annotations")
def hallucination(conversation: Conversation, material: Material, context: Context) -> str | None:
    found = contradictions(conversation, material)
    shown = [f"message {one.message}: {one.claim.kind} {one.claim.text!r}" for one in found]
    return "; ".join(dict.fromkeys(shown)) or None
