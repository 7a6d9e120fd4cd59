"""Which notation a model writes its calls and its reasoning in.

It is set by name, or seen in the template: a template shows the model earlier
calls in the notation that it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hagane.generation.parsers.base import Parser
from hagane.generation.parsers.harmony import HarmonyParser
from hagane.generation.parsers.reasoning import ReasoningParser
from hagane.generation.parsers.tool_calls.hermes import granite, hermes, phi4_mini
from hagane.generation.parsers.tool_calls.llama3 import Llama3Calls
from hagane.generation.parsers.tool_calls.named import deepseek, kimi, mistral
from hagane.generation.parsers.tool_calls.pythonic import PythonicCalls, gemma3
from hagane.generation.parsers.tool_calls.tagged import Schemas, glm4, qwen3_coder


@dataclass(frozen=True)
class ToolFormat:
    """A notation: its name, what a template that uses it contains, and how to read it.

    All of `signs` must be there. The first format of FORMATS that fits is taken. Calls that are
    one JSON object with name and arguments between two markers have these as `frame`.
    """

    name: str
    signs: tuple[str, ...]
    parser: Callable[[Schemas], Parser]
    frame: tuple[str, str] | None = None


FORMATS = (
    ToolFormat("harmony", ("<|channel|>", "<|message|>"), lambda _: HarmonyParser()),
    ToolFormat("kimi", ("<|tool_calls_section_begin|>",), lambda _: kimi()),
    ToolFormat("deepseek", ("<｜tool▁calls▁begin｜>",), lambda _: deepseek()),
    ToolFormat("qwen3-coder", ("<function=", "<parameter="), qwen3_coder),
    ToolFormat("glm4", ("<arg_key>",), glm4),
    ToolFormat(
        "hermes", ("<tool_call>",), lambda _: hermes(), frame=("<tool_call>", "</tool_call>")
    ),
    ToolFormat("phi4-mini", ("<|/tool_call|>",), lambda _: phi4_mini()),
    ToolFormat("granite", ("<|tool_call|>",), lambda _: granite()),
    ToolFormat("mistral", ("[TOOL_CALLS]",), lambda _: mistral()),
    ToolFormat("llama4", ("<|python_start|>",), lambda _: PythonicCalls()),
    ToolFormat("llama3", ("<|python_tag|>",), lambda _: Llama3Calls()),
    ToolFormat("pythonic", ("[func_name1(",), lambda _: PythonicCalls()),
    ToolFormat("llama3", ("<|eot_id|>", "parameters"), lambda _: Llama3Calls()),
    ToolFormat("gemma3", ("tool_code",), lambda _: gemma3()),
)
REASONING_MARKERS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
)


def tool_format(template: str) -> ToolFormat | None:
    """The notation of a chat template; None if it shows none."""
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


def reasoning_parser(template: str, prompt: str) -> ReasoningParser | None:
    """The parser of a model's reasoning; None if its template shows none.

    A rendered `prompt` that ends with the opening marker has begun the reasoning already.
    """
    for opening, closing in REASONING_MARKERS:
        if closing in template:
            begun = open_reasoning(template, prompt) is not None
            return ReasoningParser(opening, closing, begun=begun)
    return None
