"""Who writes conversations: a teacher by its description, as endpoints that the loop can ask.

Knows: the fields of a teacher file, the short forms of the command line, how a picture reaches the model.
Does not know: what is asked (`tasks.py`), when (`loop.py`), or HTTP (`workbench.remote`).

    kind: teacher
    model: gpt-4o-mini             # as the endpoint calls it
    endpoints:                     # several share the load
      - url: https://api.openai.com/v1
        api_key_env: OPENAI_API_KEY
        concurrency: 32
        requests_per_minute: 500
        tokens_per_minute: 200000
    sees: true                     # false: a text model that is told captions and boxes, as in the LLaVA paper
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from workbench.chat_model import ChatModel, SamplingOptions
from workbench.data.dataset import Dataset
from workbench.data.images import load_image
from workbench.errors import DataError, RecipeError
from workbench.instruct.cost import Price, load_prices, price_of
from workbench.instruct.endpoints import Endpoint, LocalEndpoint, Request
from workbench.instruct.plan import Job, request
from workbench.recipe import Count, Positive, Section
from workbench.recipe_yaml import explain, read_yaml
from workbench.remote import NO_KEY, RemoteModel

if TYPE_CHECKING:
    from workbench.conversation import Image


class EndpointSpec(Section):
    """One OpenAI-compatible server."""

    url: str | None = None
    """Up to and including `/v1`; `$OPENAI_BASE_URL`, else OpenAI's own, when absent."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; a server that needs none may do without."""
    concurrency: Count = 16
    """Requests in flight at once."""
    requests_per_minute: Positive | None = None
    """No limit when absent."""
    tokens_per_minute: Positive | None = None
    """Of prompts and replies together; no limit when absent."""


class TeacherSpec(Section):
    """A teacher file."""

    kind: Literal["teacher"] = "teacher"
    name: str | None = None
    """In ids and provenance; the model's when absent. Another name writes other conversations beside the first."""
    model: str
    """As the endpoint calls it; for a local one a folder or a name on the Hub."""
    local: bool = False
    """A vision-language model of transformers in this process, instead of endpoints."""
    load: Literal["fp32", "bf16", "fp16", "8bit", "4bit"] | None = None
    """Number format of a local model's weights; as saved when absent."""
    device: str = "auto"
    """Of a local model."""
    adapter: str | None = None
    """A folder with a peft adapter for a local model, such as your own fine-tune of it."""
    endpoints: Annotated[list[EndpointSpec], Field(min_length=1)] = [EndpointSpec()]
    sees: bool = True
    """Whether it is given the picture; false for a text model."""
    structured: bool = True
    """Whether replies are asked for as JSON under a schema; an endpoint that refuses schemas is asked without."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: int | None = None
    """Sent to the endpoint where given."""
    max_tokens: Count = 1024
    """Of a reply, at most; a task may want fewer."""
    timeout: Positive = 120.0
    """Seconds for one reply."""
    max_side: Count | None = None
    """Larger pictures are scaled down to so many pixels before they are sent."""
    batch: Count = 8
    """Conversations a local model answers at once."""

    @model_validator(mode="after")
    def _one_place(self) -> TeacherSpec:
        if self.local and self.endpoints != [EndpointSpec()]:
            raise RecipeError("endpoints", found="endpoints with local: true", expected="one of the two")
        if self.adapter and not self.local:
            raise RecipeError("adapter", found="an adapter without local: true", expected="a local model to put it on")
        return self


@dataclass(frozen=True)
class Teacher:
    """A teacher that is ready to be asked."""

    name: str
    model: str
    endpoints: Sequence[Endpoint]
    sees: bool
    structured: bool
    options: SamplingOptions
    price: Price | None
    """None where it is not known."""

    def request(self, job: Job) -> Request:
        """What it is asked for a job."""
        return request(
            job, model=self.model, options=self.options, sees=self.sees, structured=self.structured, price=self.price
        )


RULES = "rules"


def find_teacher(
    teacher: str | Path | TeacherSpec | ChatModel, dataset: Dataset | None, *, prices: str | Path | None = None
) -> Teacher:
    """A teacher by its file, its short form, its description, or any `ChatModel`.

    Short forms: `MODEL@URL` (an OpenAI-compatible endpoint) and `local:MODEL` (a folder or a name on the Hub).
    `dataset`: where pictures lie; None for questions without any. `prices`: a file laid over the shipped price table.
    Raises `RecipeError` for a description that is wrong.
    """
    if isinstance(teacher, (str, Path, TeacherSpec)):
        return _described(teacher if isinstance(teacher, TeacherSpec) else read_teacher(teacher), dataset, prices)
    options = SamplingOptions(max_tokens=1024)
    return Teacher(teacher.name, teacher.name, [LocalEndpoint(teacher)], True, False, options, Price.free())


def read_teacher(teacher: str | Path) -> TeacherSpec:
    """The description in a YAML file, or of a short form."""
    path = Path(teacher)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        data, where = read_yaml(path), path.name
    else:
        data, where = _short(str(teacher)), f"teacher {str(teacher)!r}"
    try:
        return TeacherSpec.model_validate(data)
    except ValidationError as error:
        raise explain(error, TeacherSpec, where, set()) from None
    except RecipeError as error:
        raise RecipeError(f"{where}, {error.where}", found=error.found, expected=error.expected) from None


def _short(text: str) -> dict[str, Any]:
    if text.startswith("local:"):
        return {"model": text.removeprefix("local:"), "local": True}
    model, at, url = text.partition("@")
    if model and at and url.startswith(("http://", "https://")):
        return {"model": model, "endpoints": [{"url": url}]}
    expected = "rules, MODEL@URL, local:MODEL, or a YAML file"
    raise RecipeError(f"teacher {text!r}", found="no such file or short form", expected=expected)


def _described(spec: TeacherSpec, dataset: Dataset | None, prices: str | Path | None) -> Teacher:
    options = SamplingOptions(
        temperature=spec.temperature, top_p=spec.top_p, seed=spec.seed, max_tokens=spec.max_tokens
    )
    urls = [one.url or os.environ.get("OPENAI_BASE_URL") for one in spec.endpoints]
    price = Price.free() if spec.local else price_of(spec.model, load_prices(prices), urls)
    made = [_local(spec, dataset)] if spec.local else [_remote(spec, one, dataset, price) for one in spec.endpoints]
    model = f"{spec.model} + {spec.adapter}" if spec.adapter else spec.model
    return Teacher(spec.name or model, model, made, spec.sees, spec.structured, options, price)


def _remote(spec: TeacherSpec, one: EndpointSpec, dataset: Dataset | None, price: Price | None) -> Endpoint:
    def open_image(image: Image) -> Any:
        path = _found(dataset, image)
        if spec.max_side is None:
            return path
        picture = load_image(path)
        picture.thumbnail((spec.max_side, spec.max_side))
        return picture

    key = os.environ.get(one.api_key_env) or NO_KEY  # never another endpoint's
    return Endpoint(
        RemoteModel(spec.model, url=one.url, api_key=key, open_image=open_image, timeout=spec.timeout),
        concurrency=one.concurrency,
        requests_per_minute=one.requests_per_minute,
        tokens_per_minute=one.tokens_per_minute,
        cost=price.money if price is not None else None,
    )


def _found(dataset: Dataset | None, image: Image) -> Path:
    if dataset is None:
        raise DataError(image.path, found="no dataset that says where it lies", expected="a question without pictures")
    return dataset.resolve(image)


def _local(spec: TeacherSpec, dataset: Dataset | None) -> Endpoint:
    from workbench.inference.vlm import VisionLanguageModel

    def open_image(image: Image) -> Any:
        return load_image(_found(dataset, image))

    model = VisionLanguageModel(
        spec.model, load=spec.load, device=spec.device, open_image=open_image, adapter=spec.adapter
    )
    return LocalEndpoint(model, batch=spec.batch)
