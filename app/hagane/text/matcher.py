"""Grammars of strangers, compiled within bounds."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import llguidance


# llguidance's name for a rule of which no text can be the end.
_NO_EXTENSION = "NoExtensionBias"
_ENDLESS = "a rule (of a schema: a '$ref') leads back to itself with nothing in between"


# A mask holds up every sequence of its step, so it may take some ten milliseconds at most. Grammars
# that can be read in many ways meet the first bound: with llguidance's own (50,000 items) a mask of
# `e: e e | e e e | /[a-z]/` takes 0.6 s. Schemas with hundreds of optional keys need 2,400.
@cache
def _limits() -> llguidance.LLParserLimits:
    # Imported with the first grammar: it takes an engine's start a tenth of a second.
    import llguidance

    return llguidance.LLParserLimits(
        step_max_items=5_000,
        step_lexer_fuel=100_000,
        max_lexer_states=50_000,
        # Errors are for users: without the parser's state.
        verbose_errors=False,
    )


def new_matcher(tokenizer: llguidance.LLTokenizer, grammar: str) -> llguidance.LLMatcher:
    """The beginning of a grammar; `error_of` reports an invalid one."""
    import llguidance

    return llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=_limits())


def error_of(matcher: llguidance.LLMatcher) -> str:
    """Why the grammar is invalid or cannot go on; empty if it can."""
    if not matcher.is_error():
        return ""
    error = matcher.get_error().removesuffix("<non-verbose/>").strip()
    return error.replace(_NO_EXTENSION, f"{_ENDLESS} ({_NO_EXTENSION})")
