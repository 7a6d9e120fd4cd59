"""Tries the regular expressions of a tokenizer on texts that make bad ones slow.

Runs in a worker of `Sandbox`: an expression that takes too long, or that the engine below
`tokenizers` gives up, ends the worker. Nothing is proved, but what repeats a repetition, or chains
several of the same letters, is found.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, pre_tokenizers

_LENGTH = 1500
_COMMON = ("a", "A", "aA", "1", "a1", " ", "  \n", "\n", "!", "'s", "é", "あ", "a ", "!\n")
# Literal letters of an expression, tried as well.
_MOST_LITERALS = 24


def probe(patterns: list[str]) -> None:
    """Raises ValueError naming the expression that cannot be compiled."""
    for pattern in patterns:
        try:
            split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        for text in _texts(pattern):
            split.pre_tokenize_str(text)


def _texts(pattern: str) -> Iterable[str]:
    # Engines leave out a search for a letter that the text lacks: the expression's own follow.
    needed = "".join(sorted(set(pattern)))
    literals = [letter for letter in needed if letter.isalnum()][:_MOST_LITERALS]
    for unit in (*_COMMON, *literals):
        repeated = unit * (_LENGTH // len(unit))
        yield repeated
        # A character that makes a match fail at the very end.
        yield repeated + "\0" + needed
