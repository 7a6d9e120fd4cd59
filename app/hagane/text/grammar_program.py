"""Compiles grammars of strangers, in a worker of `Sandbox`: one may take all time and memory there
is, and rules nested in thousands overflow the stack of whatever process compiles them.
"""

from __future__ import annotations

import signal
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from hagane.text.matcher import error_of, new_matcher
from hagane.text.tokenizer import read_tokenizer_json

if TYPE_CHECKING:
    import llguidance


def prepare(model: str) -> None:
    """Read the vocabulary of the model's directory or file: most of a second for 150,000 tokens.

    Raises ValueError for a tokenizer that llguidance cannot read.
    """
    _vocabulary(model)


def error_in(model: str, grammar: str) -> str:
    """Why a grammar cannot be enforced with a model; empty if it can. Raises as `prepare` does."""
    matcher = new_matcher(_vocabulary(model), grammar)
    if not matcher.is_error():
        # The first mask finds what compiling leaves open: rows or states over the limits.
        matcher.compute_bitmask()
    return error_of(matcher)


@lru_cache(maxsize=2)
def _vocabulary(model: str) -> llguidance.LLTokenizer:
    import llguidance

    text = read_tokenizer_json(Path(model))
    if sys.platform == "win32":
        return llguidance.LLTokenizer(text)
    # What the model takes is not the grammar's time.
    left, _ = signal.setitimer(signal.ITIMER_PROF, 0)
    try:
        return llguidance.LLTokenizer(text)
    finally:
        signal.setitimer(signal.ITIMER_PROF, left)
