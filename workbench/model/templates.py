"""Prompt templates as data: one YAML file says how a conversation is written, for training and for every export.

Knows: the shape of a template, and the Jinja chat template that writes the same characters for vanilla transformers.
Does not know: conversations (`segments.py`), tokenizers, ids or labels (`renderer.py`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.errors import RecipeError, kind_of

FOLDER = Path(__file__).parent / "templates"
SLOT = re.compile(r"\{(\w+)\}")
SLOTS = {
    "system_wrap": {"system"},
    "first": {"system", "content", "bos", "eos"},
    "next": {"content", "bos", "eos"},
    "answer": {"answer", "bos", "eos"},
}


class Template(BaseModel):
    """How conversations are written. `{bos}` and `{eos}` stand for the tokenizer's own begin and end token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    system: str = ""
    """The system text of a conversation that brings none; empty for no system text."""
    system_wrap: str | None = None
    """What is written for `{system}` of `first` when there is a system text; None where the template has no place."""
    first: str
    """The first question, up to and including what calls the assistant to speak. A prompt ends here."""
    next: str | None = None
    """Every later question; None where a conversation has one question only."""
    answer: str
    """The answer with its end. All of it is trained on."""
    question_text: bool = True
    """False: only the images of a question are written, its text is not."""
    needs_image: bool = False
    reserved: tuple[str, ...] = ()
    """Separators that messages must not write."""

    @cached_property
    def hash(self) -> str:
        """12 hexadecimal digits that change with anything that is written."""
        data = json.dumps(self.model_dump(exclude={"name"}), sort_keys=True)
        return hashlib.sha256(data.encode()).hexdigest()[:12]


def template_names() -> list[str]:
    """The names of the templates that ship with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_template(source: str | Path | Mapping[str, Any] | Template) -> Template:
    """A template by name, YAML file or data. Raises `RecipeError` for an unknown name, key or slot.

    >>> wb.load_template("v1").name
    'v1'
    """
    if isinstance(source, Template):
        return source
    if isinstance(source, Mapping):
        return _checked(source, str(source.get("name", "a template")))
    if not isinstance(source, (str, Path)):
        raise RecipeError("template", found=kind_of(source), expected="a name, a YAML file or a mapping")
    path = FOLDER / f"{source}.yaml"
    if not path.is_file():
        path = Path(source)
    if not path.is_file():
        raise RecipeError(
            "template", found=repr(str(source)), expected=f"a YAML file or one of {', '.join(template_names())}"
        )
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(str(path), found="YAML that cannot be read", fix=str(error)) from error
    if not isinstance(data, Mapping):
        raise RecipeError(str(path), found=type(data).__name__, expected="a mapping with name, first and answer")
    return _checked(data, str(path))


def _checked(data: Mapping[str, Any], where: str) -> Template:
    try:
        template = Template.model_validate(dict(data))
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"{where}, {'.'.join(map(str, first['loc']))}", found=first["msg"]) from error
    needed = {"first": "content", "answer": "answer", "system_wrap": "system"}
    for name, allowed in SLOTS.items():
        slots = SLOT.findall(getattr(template, name) or "")
        for slot in slots:
            if slot not in allowed:
                raise RecipeError(f"{where}, {name}", found=f"{{{slot}}}", expected=f"one of {sorted(allowed)}")
        if getattr(template, name) is not None and name in needed and slots.count(needed[name]) != 1:
            raise RecipeError(f"{where}, {name}", found=getattr(template, name), expected=f"{{{needed[name]}}} once")
    return template


# --- the same characters, written by Jinja --------------------------------------------------------------------

JINJA_TEXT = "(c if c is string else c | selectattr('type', 'equalto', 'text') | map(attribute='text') | join)"
JINJA_CONTENT = """\
    {%- set pictures = [] if c is string else c | selectattr('type', 'in', ['image', 'image_url']) | list %}
    {%- if not pictures %}
        {%- set ns.content = TEXT %}
    {%- else %}
        {%- set ns.content = '' %}
        {%- set ns.run = '' %}
        {%- set parts = [pictures[0], {'type': 'text', 'text': TEXT}] if pictures | length == 1 else c %}
        {%- for part in parts + [none] %}
            {%- if part is not none and part['type'] == 'text' %}
                {%- set ns.run = ns.run + part['text'] %}
            {%- else %}
                {%- if ns.run | trim %}
                    {%- set ns.content = ns.content + ('\\n' if ns.content else '') + ns.run | trim %}
                {%- endif %}
                {%- set ns.run = '' %}
                {%- if part is not none %}
                    {%- set ns.content = ns.content + ('\\n' if ns.content else '') + '<image>' %}
                {%- endif %}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
""".replace("TEXT", JINJA_TEXT)
LEADS = {"always": "chunk", "missing": "chunk and not chunk.startswith((' ', '▁'))"}
JINJA_IMAGES = (
    "    {%- set ns.content = '<image>' * (c | selectattr('type', 'in', ['image', 'image_url']) | list | length) %}\n"
)
JINJA_VIDEOS = {
    "'<image>' * (c | selectattr('type', 'in', ['image', 'image_url']) | list | length)": (
        "(c | selectattr('type', 'in', ['image', 'image_url', 'video', 'video_url']) | map(attribute='type')"
        " | map('replace', '_url', '') | map('replace', 'image', '<image>')"
        " | map('replace', 'video', '<video>') | join)"
    ),
    "['image', 'image_url']": "['image', 'image_url', 'video', 'video_url']",
    "+ '<image>'": "+ ('<video>' if part['type'] in ['video', 'video_url'] else '<image>')",
}
"""What each of the above becomes for a model that reads videos."""


def chat_template(template: Template, *, bos: bool = True, lead: str = "never", videos: bool = False) -> str:
    """The Jinja chat template that writes what `Renderer` writes, for messages in the Hugging Face shape.

    A question always calls the assistant to speak, with or without `add_generation_prompt`. `bos` (`Renderer.bos`): the
    begin token is written, so the tokenizer beside it must add none; then `apply_chat_template` of processor and
    tokenizer, and `processor(text=...)` of what it wrote, agree. `lead`, `videos`: see `Renderer`.
    """
    wrap = f"({_jinja(template.system_wrap or '', system='ns.system')} if ns.system else '')"
    asked = _jinja(template.first, system=wrap, content="ns.content")
    more = _jinja(template.next, content="ns.content") if template.next else None
    refuse = "{{- raise_exception('template %s: %s') }}"
    lines = [
        f"{{%- set ns = namespace(system={_quoted(template.system)}, asked=false, content='', run='', out='') %}}",
        "{%- for message in messages %}",
        "    {%- set c = message['content'] %}",
        "    {%- if message['role'] == 'system' %}",
        f"        {{%- set ns.system = {JINJA_TEXT} %}}"
        if template.system_wrap
        else "        " + refuse % (template.name, "no place for a system message"),
        "    {%- elif message['role'] == 'assistant' %}",
        f"        {{%- set ns.out = ns.out + {_jinja(template.answer, answer=JINJA_TEXT)} %}}",
        "    {%- else %}",
        _content(template.question_text, videos),
        "    {%- if not ns.asked %}",
        f"        {{%- set ns.out = ns.out + {asked} %}}",
        "    {%- else %}",
        f"        {{%- set ns.out = ns.out + {more} %}}"
        if more
        else "        " + refuse % (template.name, "one question only"),
        "    {%- endif %}",
        "    {%- set ns.asked = true %}",
        "    {%- endif %}",
        "{%- endfor %}",
    ]
    lines += _out(LEADS.get(lead), videos)
    return "\n".join(["{{- bos_token }}"] * bos + lines)


def _content(question_text: bool, videos: bool) -> str:
    """What gathers a question in `ns.content`."""
    written = (JINJA_CONTENT if question_text else JINJA_IMAGES).rstrip("\n")
    for pictures, both in JINJA_VIDEOS.items() if videos else ():
        written = written.replace(pictures, both)
    return written


def _out(lead: str | None, videos: bool) -> list[str]:
    """What writes `ns.out`, with a space before each run between two marks where `lead` holds."""
    if lead is None:
        return ["{{- ns.out }}"]
    run = f"    {{{{- ' ' if {lead} }}}}{{{{- chunk }}}}"
    if not videos:
        end = "{{- '' if loop.last else '<image>' }}"
        return ["{%- for chunk in ns.out.split('<image>') %}", run + end, "{%- endfor %}"]
    return [
        "{%- for part in ns.out.split('<image>') %}",
        "    {%- set last = loop.last %}",
        "    {%- for chunk in part.split('<video>') %}",
        run + "{{- '' if loop.last else '<video>' }}",
        "    {%- endfor %}",
        "    {{- '' if last else '<image>' }}",
        "{%- endfor %}",
    ]


def _jinja(text: str, **slots: str) -> str:
    """A Jinja expression for a template text, its slots replaced by expressions."""
    names = {"bos": "bos_token", "eos": "eos_token", **slots}
    parts = [names[part] if index % 2 else _quoted(part) for index, part in enumerate(SLOT.split(text)) if part]
    return " + ".join(parts) or "''"


def _quoted(text: str) -> str:
    return json.dumps(text)
