"""How BLIP-2 and InstructBLIP are asked: their processors have no chat template, so these stand in for one.

Knows: the words around a question, as LAVIS (their authors' library) writes them, and that they see one picture, which
the processor puts before all text.
Does not know: how the model is loaded or answers (`vlm.py`).
"""

from __future__ import annotations

_ONE_PICTURE = (
    "{% set seen = namespace(pictures=0) %}"
    "{% for message in messages %}{% for part in message['content'] if part['type'] == 'image' %}"
    "{% set seen.pictures = seen.pictures + 1 %}{% endfor %}{% endfor %}"
    "{% if seen.pictures != 1 %}{{ raise_exception(seen.pictures ~ ' pictures: this model takes one, no more and no "
    "fewer') }}{% endif %}"
    "{% macro said(message) %}{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endfor %}{% endmacro %}"
)
_TALK = (
    "{% for message in messages[:-1] %}{% if message['role'] == 'user' %}Question: {{ said(message) }} "
    "{% elif message['role'] == 'assistant' %}Answer: {{ said(message) }}. {% else %}{{ said(message) }} {% endif %}"
    "{% endfor %}"
)
_BLIP2 = _ONE_PICTURE + _TALK + "Question: {{ said(messages[-1]) }} Answer:"
_INSTRUCTBLIP = (
    _ONE_PICTURE + "{% if messages[:-1] %}dialog history: " + _TALK + "{{ '\\n' }}{% endif %}{{ said(messages[-1]) }}"
)

TEMPLATES = {"blip-2": _BLIP2, "instructblip": _INSTRUCTBLIP}
"""`model_type` -> what stands in for its chat template.

BLIP-2: LAVIS, `examples/blip2_instructed_generation.ipynb`; InstructBLIP takes the bare instruction, and what was said
before it as `blip2_vicuna_instruct.py` has it.
"""
