"""Grammars in the engine: which tokens may come next, and which must.

The mask of a sequence is computed on the host in some ten microseconds. Where its grammar leaves
one way to go on, `follow` names the tokens: they need no sampling, and pass through the model
together in the next step. So constrained answers take fewer steps than free ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Set
from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from hagane.engine.schedule.plan import Continuation
from hagane.engine.schedule.sequence import Sequence
from hagane.pool.messages import GrammarRef
from hagane.system.errors import InvalidRequestError
from hagane.text.matcher import error_of, new_matcher

if TYPE_CHECKING:
    import llguidance

_KEPT_GRAMMARS = 256


class Constraint:
    """Where one sequence stands in its grammar.

    Methods raise InvalidRequestError where the grammar has become too complex to go on.
    """

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def copy(self) -> Constraint:
        """The same place; the two go on independently."""
        return Constraint(self._matcher.deep_copy(), self._vocab_size)

    def allowed(self) -> Tensor:
        """bool [vocab]: the tokens that may come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        flags = np.unpackbits(bits, bitorder="little")[: self._vocab_size]
        if flags.size < self._vocab_size:
            # Rows of the head beyond the tokenizer's vocabulary stand for no text.
            flags = np.pad(flags, (0, self._vocab_size - flags.size))
        return torch.from_numpy(flags.view(np.bool_))

    def forced(self) -> tuple[int, ...]:
        """The tokens that must come next; empty where there is a choice, and at the end."""
        if self._matcher.is_stopped():
            return ()
        tokens = self._matcher.compute_ff_tokens()
        self._check()
        return tuple(tokens)

    def advance(self, *tokens: int) -> None:
        """Go on over tokens that `allowed` or `forced` have named."""
        self._matcher.consume_tokens(list(tokens))
        self._check()

    def valid(self, tokens: Rows[int]) -> int:
        """How many of `tokens` could come next, one after the other."""
        count: int = self._matcher.validate_tokens(list(tokens))
        self._check()
        return count

    @property
    def finished(self) -> bool:
        """Whether nothing may follow but the end of the text."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if error := error_of(self._matcher):
            raise InvalidRequestError(f"The grammar cannot go on: {error}")


class Grammars:
    """Compiled grammars of one model, of which the least recently used are forgotten.

    `tokenizer` gives the text of the model's tokenizer.json, `vocab_size` is the number of rows of
    its head. Both are needed for the first grammar alone: reading a vocabulary of 150,000 tokens
    takes most of a second.
    """

    def __init__(self, tokenizer: Callable[[], str], vocab_size: int) -> None:
        self._read = tokenizer
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._vocab_size = vocab_size
        self._compiled: OrderedDict[str, Constraint] = OrderedDict()

    def __contains__(self, grammar: GrammarRef) -> bool:
        return grammar.digest in self._compiled

    def start(self, grammar: GrammarRef) -> Constraint:
        """The beginning of a grammar that is kept. Raises KeyError for others."""
        self._compiled.move_to_end(grammar.digest)
        return self._compiled[grammar.digest].copy()

    def compile(self, grammar: GrammarRef) -> Constraint:
        """The beginning of any grammar, to be kept; may run in a thread.

        Raises InvalidRequestError if it cannot be compiled.
        """
        if self._tokenizer is None:
            import llguidance

            self._tokenizer = llguidance.LLTokenizer(self._read())
        matcher = new_matcher(self._tokenizer, grammar.text)
        compiled = Constraint(matcher, self._vocab_size)
        compiled.allowed()
        return compiled

    def keep(self, digest: str, compiled: Constraint, in_use: Set[str] = frozenset()) -> None:
        """Keep a grammar; the least recently used ones that are not `in_use` go for it."""
        self._compiled[digest] = compiled
        excess = len(self._compiled) - _KEPT_GRAMMARS
        if excess > 0:
            idle = [other for other in self._compiled if other not in in_use | {digest}]
            for other in idle[:excess]:
                del self._compiled[other]


class Constraints:
    """The grammars that live sequences follow."""

    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars
        self._places: WeakKeyDictionary[Sequence, Constraint] = WeakKeyDictionary()

    def masks(self, sequences: Rows[Sequence]) -> dict[Sequence, Tensor]:
        """bool [vocab] of the sequences among these that follow a grammar."""
        return {
            sequence: self._place(sequence).allowed()
            for sequence in sequences
            if sequence.grammar is not None
        }

    def follow(self, sequence: Sequence, tokens: Rows[int], *, forced: bool) -> Continuation:
        """Go on over the tokens that a sequence drew; with `forced`, over those that must follow.

        Tokens whose log-probabilities are wanted are never forced: nothing would compute these.
        """
        place = self._place(sequence)
        place.advance(*tokens)
        following = place.forced() if forced and sequence.sampling.logprobs is None else ()
        if following:
            place.advance(*following)
        return Continuation(following, ended=place.finished)

    def branch(self, sequence: Sequence, ahead: Sequence, tokens: Rows[int]) -> None:
        """Have `ahead` stand where `sequence` would after `tokens`, which its grammar allows."""
        if sequence.grammar is not None:
            place = self._place(sequence).copy()
            place.advance(*tokens)
            self._places[ahead] = place

    def valid(self, sequence: Sequence, tokens: Rows[int]) -> int:
        """How many of `tokens` the grammar of a sequence lets follow."""
        return self._place(sequence).valid(tokens)

    def _place(self, sequence: Sequence) -> Constraint:
        place = self._places.get(sequence)
        if place is None and sequence.grammar is not None:
            place = self._places[sequence] = self._grammars.start(sequence.grammar)
            place.advance(*sequence.tokens[sequence.prompt_length :])
        if place is None:
            raise KeyError("the sequence follows no grammar")
        return place
