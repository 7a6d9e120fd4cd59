"""The form of an answer: JSON of a schema, a regular expression, a choice, a grammar.

Every form that the dialects know becomes one string in llguidance's own notation, which the engine
turns into token masks. Compiling is linear in the grammar and bounded by llguidance's fuel, so a
grammar that is too large is refused here and never reaches the engine.
https://github.com/guidance-ai/llguidance
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import llguidance
from llguidance.gbnf_to_lark import gbnf_to_lark

from hagane.generation.schemas import rewritten
from hagane.system.errors import InvalidRequestError, ModelError
from hagane.system.sandbox import Sandbox, SandboxError, SandboxLimitError

# Bytes of a grammar as a client writes it. The largest schemas of public benchmarks have 200 kB.
MOST_BYTES = 1 << 19
MOST_CHOICES = 10_000
# Like json.dumps, as models have seen most JSON; free whitespace would let a model pad forever.
JSON_OPTIONS: Any = {
    "whitespace_flexible": False,
    "key_separator": ": ",
    "item_separator": ", ",
}
_KEPT_VERDICTS = 512
_PROGRAM = "hagane.text.grammar_program"
# Of processor time. Schemas with hundreds of keys take a tenth of it.
_COMPILE_SECONDS = 2.0


@dataclass(frozen=True)
class Grammar:
    """A grammar in llguidance's notation, and the field of the request that has it.

    One that is `optional` is left out where it cannot be enforced.
    """

    text: str
    param: str
    optional: bool = False

    @property
    def digest(self) -> str:
        """The grammar's name: equal texts share one compiled form."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Marker:
    """A marker between the parts of an answer: its text, and its id where it is one token."""

    text: str
    token: int | None = None

    def as_lark(self) -> str:
        """llguidance distinguishes special tokens from their letters."""
        return json.dumps(self.text) if self.token is None else f"<[{self.token}]>"


def any_json_object(param: str) -> Grammar:
    """Any JSON object, as OpenAI's `response_format: {"type": "json_object"}` wants it."""
    return from_json_schema({"type": "object"}, param)


def from_json_schema(schema: Mapping[str, Any] | bool | str, param: str) -> Grammar:
    """JSON that validates against `schema`, written compactly, keys in the schema's order.

    Raises InvalidRequestError for an invalid schema, for one that is too large, and for
    `x-guidance`, which would let a request switch llguidance's own checks off.
    """
    text = schema_text(schema, param)
    try:
        made = llguidance.LLMatcher.grammar_from_json_schema(text, overrides=JSON_OPTIONS)
    except ValueError as error:
        raise InvalidRequestError(f"{param} is not a JSON schema: {error}.", param=param) from None
    return Grammar(made, param)


def from_regex(regex: str, param: str) -> Grammar:
    """Text that `regex` matches as a whole; Rust's syntax, which always matches in linear time."""
    check_size(regex, param)
    return Grammar(llguidance.LLMatcher.grammar_from_regex(regex), param)


def from_choices(choices: Sequence[str], param: str) -> Grammar:
    """One of `choices`, letter by letter.

    Raises InvalidRequestError if there are none, too many, or an empty one.
    """
    if not 1 <= len(choices) <= MOST_CHOICES or not all(choices):
        raise InvalidRequestError(
            f"{param} has {len(choices)} choices; send 1 to {MOST_CHOICES}, none of them empty.",
            param=param,
        )
    check_size("".join(choices), param)
    lines = "\n  | ".join(json.dumps(choice) for choice in choices)
    return Grammar(llguidance.LLMatcher.grammar_from_lark(f"start: {lines}"), param)


def from_text(grammar: str, param: str) -> Grammar:
    """A context-free grammar in Lark's notation or llama.cpp's GBNF, distinguished by `::=`.

    Raises InvalidRequestError for GBNF that cannot be translated.
    """
    check_size(grammar, param)
    if grammar.lstrip().startswith("{"):
        raise InvalidRequestError(f"{param} is JSON; send Lark or GBNF.", param=param)
    if "::=" in grammar:
        try:
            grammar = gbnf_to_lark(grammar)
        except Exception as error:  # the translator raises what its parser happens to raise
            raise InvalidRequestError(f"{param} is not GBNF: {error}.", param=param) from None
    return Grammar(llguidance.LLMatcher.grammar_from_lark(grammar), param)


def any_text(between: Sequence[Marker], param: str) -> Grammar:
    """Any text, with these markers anywhere in it."""
    parts = " | ".join(["TEXT", *(marker.as_lark() for marker in between)])
    return Grammar(f"start: ({parts})*\nTEXT: /(.|\\n)+/", param)


def one_of(first: Grammar, second: Grammar) -> Grammar:
    """Text of either grammar; problems are reported for the field of the first."""
    return compose("start: @first | @second", {"first": first, "second": second}, first.param)


def after_reasoning(
    grammar: Grammar, closing: Marker, budget: int | None = None, opening: Marker | None = None
) -> Grammar:
    """Reasoning that has begun already, up to its `closing` marker, and then `grammar`.

    With an `opening` marker, which is one token, the reasoning has not begun and may be left out.
    With a `budget`, which needs a closing marker that is one token, it is closed after that many
    tokens.
    """
    if budget is not None:
        thought = f"thought {closing.as_lark()}"
        rules = f"thought[max_tokens={budget}]: /(.|\\n)*/"
    elif closing.token is not None:
        thought = f"thought {closing.as_lark()}"
        rules = "thought: /(.|\\n)*/"
    else:
        thought = "thought"
        rules = f"thought[suffix={closing.as_lark()}]: /(.|\\n)*/"
    start = f"{thought} /\\s*/"
    if opening is not None:
        start = f"({opening.as_lark()} {start})?"
    composed = compose(f"start: {start} @answer\n{rules}", {"answer": grammar}, grammar.param)
    return replace(composed, optional=grammar.optional)


def compose(rules: str, parts: Mapping[str, Grammar], param: str) -> Grammar:
    """Lark `rules` that refer to `parts` by @name."""
    every: list[dict[str, Any]] = [{"name": "start", "lark_grammar": rules}]
    for name, part in parts.items():
        if part.text.startswith('{"grammars"'):
            first, *rest = json.loads(part.text)["grammars"]
            every += [{**first, "name": name}, *rest]
        else:
            every.append({"name": name, "lark_grammar": part.text})
    return Grammar(json.dumps({"grammars": every}), param)


def schema_text(schema: Mapping[str, Any] | bool | str, param: str, **options: Any) -> str:
    """A schema as llguidance follows it, with `options` of its own as further keywords.

    Raises InvalidRequestError as `from_json_schema` does.
    """
    if isinstance(schema, str):
        check_size(schema, param)
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"{param} is not JSON: {error}.", param=param) from None
    if schema is True:
        schema = {}
    if not isinstance(schema, Mapping):
        raise InvalidRequestError(f"{param} must be a JSON schema, that is an object.", param=param)
    if "x-guidance" in schema:
        raise InvalidRequestError(f"{param}: remove the keyword x-guidance.", param=param)
    # The dialect changes nothing that llguidance checks, and an unknown one is looked up.
    schema = {key: value for key, value in schema.items() if key != "$schema"}
    try:
        text = json.dumps(rewritten(schema) | options)
    except RecursionError:
        raise InvalidRequestError(f"{param} is nested too deeply.", param=param) from None
    except ValueError as error:
        raise InvalidRequestError(f"{param} cannot be enforced: {error}.", param=param) from None
    check_size(text, param)
    return text


def check_size(text: str, param: str) -> None:
    """Raises InvalidRequestError for a grammar that is too long to be compiled."""
    size = len(text.encode("utf-8", errors="replace"))
    if size > MOST_BYTES:
        raise InvalidRequestError(
            f"{param} has {size:,} bytes; a grammar may have {MOST_BYTES:,}. Make it smaller.",
            param=param,
        )


class GrammarChecker:
    """Compiles grammars against the tokens of one model, and remembers the verdicts. Thread safe.

    They are compiled in a worker process: one that takes too much costs its own request alone.
    """

    def __init__(self, model: Path) -> None:
        self._model = str(model)
        self._lock = threading.Lock()
        self._verdicts: OrderedDict[str, str] = OrderedDict()

    def prepare(self) -> None:
        """Have a worker read the vocabulary. Raises ModelError for one that cannot be used."""
        try:
            _sandbox().call(f"{_PROGRAM}:prepare", self._model)
        except SandboxError as error:
            raise ModelError(f"the tokenizer cannot follow grammars: {error}") from None

    def check(self, grammar: Grammar) -> None:
        """Compile it once: up to a tenth of a second, so never on an event loop.

        Raises InvalidRequestError with llguidance's words: the place, or the keyword.
        """
        verdict = self._verdicts.get(grammar.digest)
        if verdict is None:
            # Without the lock: a small grammar does not wait for a large one.
            verdict = self._compile(grammar)
            with self._lock:
                self._verdicts[grammar.digest] = verdict
                if len(self._verdicts) > _KEPT_VERDICTS:
                    self._verdicts.popitem(last=False)
        if verdict:
            raise InvalidRequestError(
                f"{grammar.param} cannot be enforced: {verdict}",
                param=grammar.param,
                code="invalid_grammar",
            )

    def _compile(self, grammar: Grammar) -> str:
        """The error in a grammar; empty if there is none."""
        try:
            verdict: str = _sandbox().call(f"{_PROGRAM}:error_in", self._model, grammar.text)
            return verdict
        except SandboxLimitError as error:
            return f"compiling it is too much: {error}."
        except SandboxError as error:
            raise InvalidRequestError(
                f"{grammar.param} cannot be enforced with this model: the tokenizer cannot follow "
                f"grammars: {error}. Leave it out.",
                param=grammar.param,
                code="unsupported_parameter",
            ) from None


@cache
def _sandbox() -> Sandbox:
    """The vocabulary of a model takes some hundred megabytes in each worker."""
    return Sandbox(processes=2, seconds=_COMPILE_SECONDS, memory=2 << 30)
