"""Token masks of grammars: which tokens may come next, and which must.

A `Constraint` follows one sequence. Its mask is computed on the host in some ten microseconds,
while the forward pass runs; where the grammar leaves one way to go on, `forced` names the tokens,
which need no sampling and pass through the model together, in one step.
"""

from __future__ import annotations

from collections import OrderedDict

import llguidance
import numpy as np
import torch
from torch import Tensor

from hagane.system.errors import InvalidRequestError

_KEPT_GRAMMARS = 256


class Constraint:
    """Where one sequence stands in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def copy(self) -> Constraint:
        """The same place for another continuation of the same prompt."""
        return Constraint(self._matcher.deep_copy(), self._vocab_size)

    def allowed(self) -> Tensor:
        """bool [vocab]: the tokens that may come next.

        Raises InvalidRequestError where the grammar has become too complex to go on.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        flags = np.unpackbits(bits, bitorder="little")[: self._vocab_size]
        if flags.size < self._vocab_size:
            # Rows of the head beyond the tokenizer's vocabulary stand for no text.
            flags = np.pad(flags, (0, self._vocab_size - flags.size))
        return torch.from_numpy(flags.view(np.bool_))

    def forced(self) -> list[int]:
        """The tokens that must come next; empty where there is a choice, and at the end."""
        if self._matcher.is_stopped():
            return []
        tokens = self._matcher.compute_ff_tokens()
        self._check()
        return tokens

    def advance(self, *tokens: int) -> None:
        """Go on over tokens that `allowed` or `forced` have named.

        Raises InvalidRequestError for any other.
        """
        self._matcher.consume_tokens(list(tokens))
        self._check()

    @property
    def finished(self) -> bool:
        """Whether nothing may follow but the end of the text."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidRequestError(f"The grammar cannot go on: {self._matcher.get_error()}")


class Grammars:
    """Compiled grammars of one model, the least recently used of which are forgotten.

    `tokenizer` is the text of its tokenizer.json, `vocab_size` the number of rows of its head,
    `ends` the token ids that end an answer. Compiling belongs in another thread than the engine's.
    """

    def __init__(self, tokenizer: str, vocab_size: int, ends: tuple[int, ...]) -> None:
        self._tokenizer = llguidance.LLTokenizer(tokenizer, eos_token=list(ends) or None)
        self._vocab_size = vocab_size
        self._compiled: OrderedDict[str, Constraint] = OrderedDict()

    def compile(self, digest: str, text: str) -> None:
        """Make `constraint(digest)` ready. Raises InvalidRequestError with the grammar's error."""
        if digest not in self._compiled:
            constraint = Constraint(
                llguidance.LLMatcher(self._tokenizer, text, log_level=0), self._vocab_size
            )
            constraint.allowed()
            self._compiled[digest] = constraint
        self._compiled.move_to_end(digest)
        while len(self._compiled) > _KEPT_GRAMMARS:
            self._compiled.popitem(last=False)

    def constraint(self, digest: str) -> Constraint:
        """At the beginning of a compiled grammar. Raises KeyError for one that is not there."""
        return self._compiled[digest].copy()
