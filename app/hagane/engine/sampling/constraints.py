"""Grammars in the engine: which tokens may come next, and which must.

The mask of a sequence is computed on the host in some ten microseconds. Where its grammar leaves
one way to go on, `follow` names the tokens: they need no sampling, and pass through the model
together in the next step. So constrained answers take fewer steps than free ones.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Set
from collections.abc import Sequence as Rows
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from hagane.engine.sampling.grammar_vocabulary import Vocabulary
from hagane.engine.schedule.plan import Continuation
from hagane.engine.schedule.sequence import Sequence
from hagane.pool.messages import GrammarRef
from hagane.system.errors import InvalidRequestError
from hagane.text.matcher import error_of, new_matcher

if TYPE_CHECKING:
    import llguidance

_KEPT_GRAMMARS = 256
# Every stream of a step waits for its masks. Schemas take some hundredths of a millisecond.
_FREE_SECONDS = 0.25
_SECONDS_PER_MASK = 0.002


class Cost:
    """The engine's time spent on all sequences that follow one grammar, in CPU seconds.

    By grammar, so that it is no way around the bound to ask again, or for many answers at once.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.masks = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Adds what runs in the context."""
        started = time.thread_time()
        yield
        self.seconds += time.thread_time() - started

    @property
    def excessive(self) -> bool:
        """Whether it is more than a grammar may take for as many masks."""
        return self.seconds > _FREE_SECONDS + _SECONDS_PER_MASK * self.masks


class Constraint:
    """Where one sequence stands in its grammar.

    Methods raise InvalidRequestError where the grammar has become too complex to go on, or takes
    too much time.
    """

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int, cost: Cost) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._cost = cost

    def copy(self) -> Constraint:
        """The same place; the two go on independently, at the same account."""
        with self._cost.counted():
            matcher = self._matcher.deep_copy()
        return Constraint(matcher, self._vocab_size, self._cost)

    def allowed(self) -> Tensor:
        """bool [vocab]: the tokens that may come next."""
        self._cost.masks += 1
        with self._cost.counted():
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
        with self._cost.counted():
            tokens = self._matcher.compute_ff_tokens()
        self._check()
        return tuple(tokens)

    def advance(self, *tokens: int) -> None:
        """Go on over tokens that `allowed` or `forced` have named."""
        with self._cost.counted():
            self._matcher.consume_tokens(list(tokens))
        self._check()

    def valid(self, tokens: Rows[int]) -> int:
        """How many of `tokens` could come next, one after the other."""
        with self._cost.counted():
            count: int = self._matcher.validate_tokens(list(tokens))
        self._check()
        return count

    @property
    def may_end(self) -> bool:
        """Whether the text may end here."""
        with self._cost.counted():
            accepting: bool = self._matcher.is_accepting()
        return accepting

    @property
    def finished(self) -> bool:
        """Whether nothing may follow but the end of the text."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if error := error_of(self._matcher):
            raise InvalidRequestError(f"The grammar cannot go on: {error}")
        if self._cost.excessive:
            raise InvalidRequestError(
                f"The grammar takes too much time: {self._cost.seconds:.2f} s for "
                f"{self._cost.masks} tokens, where others would wait. Make it simpler: say each "
                "thing in one way only."
            )


class Grammars:
    """Compiled grammars of one model, of which the least recently used are forgotten.

    `vocab_size` is the number of rows of its head.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        self._vocabulary = vocabulary
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
        matcher = new_matcher(self._vocabulary.tokens(), grammar.text)
        # The first mask is not counted: no step waits for it.
        compiled = Constraint(matcher, self._vocab_size, Cost())
        compiled.allowed()
        return Constraint(matcher, self._vocab_size, Cost())

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
            sequence: self._mask(sequence) for sequence in sequences if sequence.grammar is not None
        }

    def _mask(self, sequence: Sequence) -> Tensor:
        """The tokens that may come next. llguidance knows one end of text, models have several."""
        place = self._place(sequence)
        allowed = place.allowed()
        if place.may_end:
            allowed[[token for token in _ends(sequence) if 0 <= token < len(allowed)]] = True
        return allowed

    def follow(self, sequence: Sequence, tokens: Rows[int], *, forced: bool) -> Continuation:
        """Go on over the tokens that a sequence drew; with `forced`, over those that must follow.

        Tokens whose log-probabilities are wanted are never forced: nothing would compute these.
        """
        place = self._place(sequence)
        *before, last = tokens
        if last in _ends(sequence):
            place.advance(*before)
            if place.may_end and not place.valid([last]):
                return Continuation(ended=True)
            tokens = [last]
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


def _ends(sequence: Sequence) -> tuple[int, ...]:
    """The tokens that end a sequence without being part of its text."""
    sampling = sequence.sampling
    return sampling.stop_token_ids + (() if sampling.ignore_eos else sampling.eos_token_ids)
