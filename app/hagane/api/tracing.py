"""Attributes of a generation's span, after OpenTelemetry's conventions for generative AI.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

from typing import Literal, Protocol

from opentelemetry import trace
from opentelemetry.util.types import AttributeValue

INPUT_TOKENS = "gen_ai.usage.input_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
# Fields of a body whose names are those of the attributes.
_PARAMETERS = (
    "temperature", "top_p", "top_k", "seed", "max_tokens", "presence_penalty", "frequency_penalty",
)  # fmt: skip


class GeneratingBody(Protocol):
    """The body of any route that generates.

    >>> describe_request("chat", body, model="llama")  # body: GeneratingBody
    """

    @property
    def model(self) -> str: ...

    @property
    def stream(self) -> bool: ...


def describe_request(
    operation: Literal["chat", "text_completion"], body: GeneratingBody, model: str
) -> None:
    """Add the requested parameters and the `model` that answers to the request's span."""
    span = trace.get_current_span()
    if not span.is_recording():
        return
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "hagane",
        "gen_ai.request.model": body.model,
        "gen_ai.response.model": model,
        "gen_ai.request.stream": bool(body.stream),
        "gen_ai.request.choice.count": getattr(body, "n", None) or 1,
    }
    for name in _PARAMETERS:
        if (value := getattr(body, name, None)) is not None:
            attributes[f"gen_ai.request.{name}"] = value
    span.set_attributes(attributes)
