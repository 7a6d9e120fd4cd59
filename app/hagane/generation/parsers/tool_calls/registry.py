"""Which notation a model writes its calls and its reasoning in.

It is set by name, or seen in the template: a template shows the model earlier
calls in the notation that it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hagane.generation.notation import Notation
from hagane.generation.parsers.base import Parser
from hagane.generation.parsers.harmony import HarmonyParser
from hagane.generation.parsers.reasoning import ReasoningParser
from hagane.generation.parsers.tool_calls.hermes import (
    GRANITE,
    HERMES,
    PHI4_MINI,
    granite,
    hermes,
    phi4_mini,
)
from hagane.generation.parsers.tool_calls.llama3 import LLAMA3, Llama3Calls
from hagane.generation.parsers.tool_calls.named import (
    KIMI,
    deepseek,
    deepseek_notation,
    kimi,
    mistral,
    mistral_notation,
)
from hagane.generation.parsers.tool_calls.pythonic import PythonicCalls, gemma3
from hagane.generation.parsers.tool_calls.tagged import (
    GLM4,
    QWEN3_CODER,
    Schemas,
    glm4,
    qwen3_coder,
)


@dataclass(frozen=True)
class ToolFormat:
    """A notation: its name, what a template that uses it contains, and how to read it.

    All of `signs` must be there. The first format of FORMATS that fits is taken. Calls are held to
    their schemas where `notation` says how the model of a template writes them. Calls between the
    markers `frame` are understood without them, too.
    """

    name: str
    signs: tuple[str, ...]
    parser: Callable[[Schemas], Parser]
    notation: Callable[[str], Notation] | None = None
    frame: tuple[str, str] | None = None


FORMATS = (
    ToolFormat("harmony", ("<|channel|>", "<|message|>"), lambda _: HarmonyParser()),
    ToolFormat("kimi", ("<|tool_calls_section_begin|>",), lambda _: kimi(), lambda _: KIMI),
    ToolFormat("deepseek", ("<｜tool▁calls▁begin｜>",), lambda _: deepseek(), deepseek_notation),
    ToolFormat("qwen3-coder", ("<function=", "<parameter="), qwen3_coder, lambda _: QWEN3_CODER),
    ToolFormat("glm4", ("<arg_key>",), glm4, lambda _: GLM4),
    ToolFormat(
        "hermes",
        ("<tool_call>",),
        lambda _: hermes(),
        lambda _: HERMES,
        frame=("<tool_call>", "</tool_call>"),
    ),
    ToolFormat("phi4-mini", ("<|/tool_call|>",), lambda _: phi4_mini(), lambda _: PHI4_MINI),
    ToolFormat("granite", ("<|tool_call|>",), lambda _: granite(), lambda _: GRANITE),
    ToolFormat("mistral", ("[TOOL_CALLS]",), lambda _: mistral(), mistral_notation),
    ToolFormat("llama4", ("<|python_start|>",), lambda _: PythonicCalls()),
    ToolFormat("llama3", ("<|python_tag|>",), lambda _: Llama3Calls(), lambda _: LLAMA3),
    ToolFormat("pythonic", ("[func_name1(",), lambda _: PythonicCalls()),
    ToolFormat("llama3", ("<|eot_id|>", "parameters"), lambda _: Llama3Calls(), lambda _: LLAMA3),
    ToolFormat("gemma3", ("tool_code",), lambda _: gemma3()),
)
REASONING_MARKERS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
)


FORMAT_NAMES = tuple(dict.fromkeys(each.name for each in FORMATS))


def tool_format(template: str, name: str | None = None) -> ToolFormat | None:
    """The format of that name, or the one that a chat template shows; None if it shows none."""
    if name is not None:
        return next(each for each in FORMATS if each.name == name)
    for candidate in FORMATS:
        if all(sign in template for sign in candidate.signs):
            return candidate
    return None


def open_reasoning(template: str, prompt: str) -> str | None:
    """The marker that closes the reasoning that a rendered `prompt` has begun; None if none."""
    for opening, closing in REASONING_MARKERS:
        if closing in template and prompt.rstrip().endswith(opening):
            return closing
    return None


def own_reasoning(template: str, prompt: str) -> tuple[str, str] | None:
    """The markers of the reasoning that a model may begin by itself after a rendered `prompt`.

    None where its template shows none, and where the prompt has begun or ended it.
    """
    for opening, closing in REASONING_MARKERS:
        if closing in template:
            ended = prompt.rstrip().endswith((opening, closing))
            return None if ended else (opening, closing)
    return None


def reasoning_parser(template: str, prompt: str) -> ReasoningParser | None:
    """The parser of a model's reasoning; None if its template shows none.

    A rendered `prompt` that ends with the opening marker has begun the reasoning already.
    """
    for opening, closing in REASONING_MARKERS:
        if closing in template:
            begun = open_reasoning(template, prompt) is not None
            return ReasoningParser(opening, closing, begun=begun)
    return None
