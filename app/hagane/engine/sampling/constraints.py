"""Grammars in the engine: which tokens may come next, and which must.

The mask of a sequence takes 10 to 1,000 microseconds of the host, the question whether it has one
token takes 3. Where a grammar leaves one way to go on, `follow` names the tokens: they need no
sampling, and pass through the model together in the next step. So constrained answers take fewer
steps than free ones.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence as Rows
from collections.abc import Set
from itertools import takewhile
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
_SECONDS_PER_TOKEN = 0.002


class Cost:
    """The engine's time spent on all sequences that follow one grammar, in seconds.

    By grammar, so that it is no way around the bound to ask again, or for many answers at once. As
    a context it counts what runs in it: processor time of this thread, since on a busy machine
    others may have the core meanwhile.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.tokens = 0
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = time.thread_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.thread_time() - self._started

    @property
    def excessive(self) -> bool:
        """Whether it is more than a grammar may take for as many tokens."""
        return self.seconds > _FREE_SECONDS + _SECONDS_PER_TOKEN * self.tokens


class Constraint:
    """Where one sequence stands in its grammar.

    Methods raise InvalidRequestError where the grammar has become too complex to go on, or has
    taken too much time, which callers count in `cost`: clocks take longer than most answers.
    `vocab_size` is the number of rows of the model's head. Those from `known` on, the size of the
    tokenizer's vocabulary, stand for no text.
    """

    def __init__(
        self, matcher: llguidance.LLMatcher, known: int, vocab_size: int, cost: Cost
    ) -> None:
        self._matcher = matcher
        self._known, self._vocab_size = known, vocab_size
        self.cost = cost
        # Of this place, once they are known.
        self._forced: tuple[int, ...] | None = None

    def copy(self) -> Constraint:
        """The same place; the two go on independently, at the same account."""
        return Constraint(self._matcher.deep_copy(), self._known, self._vocab_size, self.cost)

    def allowed(self) -> Tensor:
        """uint8 [ceil(vocab / 8)]: the bits of tokens that may come next, the lowest bit first."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed = np.zeros(-(-self._vocab_size // 8), dtype=np.uint8)
        allowed[: len(bits)] = bits[: len(allowed)]
        return torch.from_numpy(allowed)

    def admits(self, token: int) -> bool:
        """Whether `allowed` has one token.

        Where there is no choice it has only the first of those that `forced` names: others spell
        the same text.
        """
        if forced := self.forced():
            return token == forced[0]
        # Of a token that it does not know llguidance makes an error.
        if self._matcher.is_stopped() or token >= self._known:
            return False
        admitted: bool = self._matcher.validate_tokens([token]) == 1
        self._check()
        return admitted

    def forced(self) -> tuple[int, ...]:
        """The tokens that must come next; empty where there is a choice, and at the end."""
        if self._forced is None:
            forced: tuple[int, ...] = ()
            if not self._matcher.is_stopped():
                forced = tuple(self._matcher.compute_ff_tokens())
                self._check()
            self._forced = forced
        return self._forced

    def advance(self, *tokens: int) -> None:
        """Go on over tokens that `allowed` or `forced` have named."""
        self._forced = None
        self.cost.tokens += len(tokens)
        self._matcher.consume_tokens(list(tokens))
        self._check()

    def valid(self, tokens: Rows[int]) -> int:
        """How many of `tokens` could come next, one after the other."""
        known = list(takewhile(self._known.__gt__, tokens))
        count: int = self._matcher.validate_tokens(known)
        self._check()
        return count

    @property
    def may_end(self) -> bool:
        """Whether the text may end here."""
        accepting: bool = self._matcher.is_accepting()
        return accepting

    @property
    def finished(self) -> bool:
        """Whether nothing may follow but the end of the text."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidRequestError(f"The grammar cannot go on: {error_of(self._matcher)}")
        if self.cost.excessive:
            raise InvalidRequestError(
                f"The grammar takes too much time: {self.cost.seconds:.2f} s for "
                f"{self.cost.tokens} tokens, where others would wait. Make it simpler: say each "
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
        tokens = self._vocabulary.tokens()
        matcher = new_matcher(tokens, grammar.text)
        # The first mask is not counted: no step waits for it.
        Constraint(matcher, tokens.vocab_size, self._vocab_size, Cost()).allowed()
        return Constraint(matcher, tokens.vocab_size, self._vocab_size, Cost())

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

    def admits(self, sequence: Sequence, token: int) -> bool:
        """Whether `allowed` has one token."""
        return self.first_of(sequence, [token]) is not None

    def first_of(self, sequence: Sequence, tokens: Rows[int]) -> int | None:
        """The first of `tokens` that `allowed` has."""
        place = self._place(sequence)
        with place.cost:
            ends = _ends(sequence) if place.may_end else ()
            for token in tokens:
                if token in ends or place.admits(token):
                    return token
        return None

    def allowed(self, sequence: Sequence) -> Tensor:
        """uint8 [ceil(vocab / 8)]: a bit for each token that may come next, the lowest one first.

        llguidance knows one end of text, models have several.
        """
        place = self._place(sequence)
        with place.cost:
            allowed = place.allowed()
        for token in _ends(sequence) if place.may_end else ():
            if 0 <= token < 8 * len(allowed):
                allowed[token // 8] |= 1 << (token % 8)
        return allowed

    def follow(self, sequence: Sequence, tokens: Rows[int], *, forced: bool) -> Continuation:
        """Go on over the tokens that a sequence drew; with `forced`, over those that must follow.

        Tokens whose log-probabilities are wanted are never forced: nothing would compute these.
        """
        place = self._place(sequence)
        *before, last = tokens
        with place.cost:
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
            place = self._place(sequence)
            with place.cost:
                place = place.copy()
                place.advance(*tokens)
            self._places[ahead] = place

    def valid(self, sequence: Sequence, tokens: Rows[int]) -> int:
        """How many of `tokens` the grammar of a sequence lets follow."""
        place = self._place(sequence)
        with place.cost:
            return place.valid(tokens)

    def _place(self, sequence: Sequence) -> Constraint:
        place = self._places.get(sequence)
        if place is None and sequence.grammar is not None:
            place = self._places[sequence] = self._grammars.start(sequence.grammar)
            with place.cost:
                place.advance(*sequence.tokens[sequence.prompt_length :])
        if place is None:
            raise KeyError("the sequence follows no grammar")
        return place


def _ends(sequence: Sequence) -> tuple[int, ...]:
    """The tokens that end a sequence without being part of its text."""
    sampling = sequence.sampling
    return sampling.stop_token_ids + (() if sampling.ignore_eos else sampling.eos_token_ids)
