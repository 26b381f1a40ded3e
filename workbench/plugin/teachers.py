"""The teacher that a person names in the App, safe to be named by whatever page can reach the App.

Knows: that keys of this machine go to the addresses they are for, and that no model is loaded into the App's process.
Does not know: how teachers are asked (`instruct/`).
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from workbench.errors import DataError
from workbench.instruct.teacher import RULES, EndpointSpec, TeacherSpec

_NO_KEY = "WORKBENCH_NO_KEY"
"""An environment variable that nobody sets."""


def chosen_teacher(model: str, url: str = "") -> str | TeacherSpec:
    """`rules`, or the model behind an OpenAI-compatible endpoint. Raises `DataError` for anything else.

    `OPENAI_API_KEY` goes to OpenAI and to `OPENAI_BASE_URL` alone.
    """
    model, url = model.strip(), url.strip()
    if model in ("", RULES) and not url:
        return RULES
    if not url.startswith(("http://", "https://")):
        raise DataError("teacher", found=f"address {url!r}", expected="http:// or https://, up to and including /v1")
    if not model:
        raise DataError("teacher", found="no model", expected="its name, as the endpoint calls it")
    known = ("https://api.openai.com/v1", os.environ.get("OPENAI_BASE_URL", ""))
    own = urlsplit(url)[:2] in [urlsplit(one)[:2] for one in known]
    return TeacherSpec(model=model, endpoints=[EndpointSpec(url=url, api_key_env="OPENAI_API_KEY" if own else _NO_KEY)])
