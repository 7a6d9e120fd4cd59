"""A small model that guesses the tokens of a large one, step by step (Leviathan et al., 2023,
https://arxiv.org/abs/2211.17192).

It runs in the same process, with weights, recordings and a paged cache of its own. For every
sequence of the large model that it follows it has one of its own, here its shadow, of the same
tokens and then guesses. A guess is sampled as the large model will sample there: by the same
parameters, penalties, grammar and random number. So both choose the same token where they think
alike, at any temperature.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import msgspec
import torch
from torch import Tensor

from hagane.engine.cache.blocks import BlockCopy, KVCache
from hagane.engine.sampling.constraints import Constraints
from hagane.engine.sampling.sampler import Sampler
from hagane.engine.schedule.plan import Chunk
from hagane.engine.schedule.sequence import Sequence
from hagane.engine.step.batch import build_batch
from hagane.engine.step.runner import ModelRunner
from hagane.system.errors import InvalidRequestError

# Tokens of a text that it reads in one go: the large model's streams wait for them.
PIECE = 64


@dataclass(frozen=True)
class Guess:
    """A token, and the probability that the draft gives it."""

    token: int
    confidence: float


@dataclass
class _Shadow:
    """The draft's own `sequence`, whose first `known` tokens are the large model's."""

    sequence: Sequence
    known: int
    guesses: list[Guess] = field(default_factory=list)

    @property
    def chunk(self) -> Chunk:
        """What its next step reads: all that it lacks, or a piece of that."""
        return Chunk.of(self.sequence, min(self.sequence.uncomputed, PIECE))


class DraftModel:
    """Follows sequences, and guesses a token for some of them at a time.

    Args:
        runner: its weights and cache; nobody else runs it.
        constraints: the grammars that sequences follow.
        vocab_size: rows of the large model's head. The draft's padding may differ.
        prefix_caching: whether equal beginnings of texts are read once.
    """

    def __init__(
        self,
        runner: ModelRunner,
        constraints: Constraints,
        *,
        vocab_size: int,
        prefix_caching: bool,
    ) -> None:
        self._runner, self._constraints = runner, constraints
        self._vocab_size = vocab_size
        self._sampler = Sampler(runner.operations)
        self.kv = KVCache(runner.blocks, runner.block_size, prefix_caching)
        self._shadows: WeakKeyDictionary[Sequence, _Shadow] = WeakKeyDictionary()

    def room(self, sequence: Sequence) -> int:
        """Guesses that fit into the draft's context."""
        return max(self._runner.context_length - len(sequence.tokens), 0)

    def behind(self, sequence: Sequence) -> int | None:
        """Tokens that it has to read before it guesses; None if it does not follow the sequence."""
        shadow = self._shadows.get(sequence)
        return None if shadow is None else shadow.sequence.uncomputed

    def cached(self, sequence: Sequence) -> int:
        """The leading tokens of a sequence that were read with others."""
        return self.kv.cached_tokens(self._copy(sequence))

    def follow(self, sequence: Sequence) -> bool:
        """Begin with a sequence; False if there is no memory for it."""
        own = self._copy(sequence)
        if not self.kv.admit(own):
            return False
        self._shadows[sequence] = _Shadow(own, len(own.tokens))
        return True

    def catch_up(self, sequence: Sequence) -> list[tuple[Guess, bool]]:
        """Take over the tokens that a sequence it follows has got since.

        Returns the guesses that were compared with them, and whether each was right.
        """
        shadow = self._shadows[sequence]
        own, known = shadow.sequence, shadow.known
        new = sequence.tokens[known:]
        compared: list[tuple[Guess, bool]] = []
        right = 0
        for guess, token in zip(shadow.guesses, new, strict=False):
            compared.append((guess, guess.token == token))
            if guess.token != token:
                break
            right += 1
        own.tokens[known:] = self._readable(new)
        # What follows the last right guess is read again, over the same slots. So is the last token
        # where nothing has followed.
        own.computed = min(own.computed, known + right, len(own.tokens) - 1)
        shadow.known, shadow.guesses = len(own.tokens), []
        self.kv.register(own)
        return compared

    def guess(self, sequences: Rows[Sequence]) -> tuple[dict[Sequence, Guess], int]:
        """The next token of each sequence after the guesses so far; all are followed.

        Those that are far behind read a piece of their text instead. There is none either where
        memory runs out or a grammar cannot go on. Returns also how many tokens were read.
        """
        copies: list[BlockCopy] = []
        ready = [s for s in sequences if self._prepare(s, copies)]
        chunks = {s: self._shadows[s].chunk for s in ready}
        ready.sort(key=lambda s: chunks[s].order)
        if not ready:
            return {}, 0
        logits = self._run([chunks[s] for s in ready], copies)
        sampling = [s for s in ready if chunks[s].samples]
        found: dict[Sequence, Guess] = {}
        for sequence, guess in zip(sampling, self._sample(logits, sampling), strict=False):
            if guess.token < self._vocab_size:
                shadow = self._shadows[sequence]
                shadow.guesses.append(guess)
                shadow.sequence.tokens.append(guess.token)
                found[sequence] = guess
        return found, sum(chunk.length for chunk in chunks.values())

    def forget(self, sequence: Sequence) -> None:
        """Follow a sequence no more, if it did: its blocks are free."""
        shadow = self._shadows.pop(sequence, None)
        if shadow is not None:
            self.kv.release(shadow.sequence)

    def check(self) -> None:
        """Raises RuntimeError if a block is lost or used without right."""
        self.kv.check([shadow.sequence for shadow in self._shadows.values()])

    def _copy(self, sequence: Sequence) -> Sequence:
        sampling, mask = sequence.sampling, sequence.grammar
        if self._vocab_size != self._runner.vocab_size:
            # Masks have the large model's width.
            mask = None
        bias = {t: b for t, b in sampling.logit_bias.items() if t < self._runner.vocab_size}
        return replace(
            sequence,
            tokens=self._readable(sequence.tokens),
            sampling=msgspec.structs.replace(
                sampling, logit_bias=bias, logprobs=None, prompt_logprobs=None
            ),
            grammar=mask,
            # The draft has no adapters: its cache is the same for all of them.
            adapter="",
            pending=[],
            in_flight=0,
            computed=0,
            blocks=[],
            digests=[],
            registered=0,
        )

    def _readable(self, tokens: Iterable[int]) -> list[int]:
        """Those without an embedding, which no text has, become others."""
        rows = self._runner.vocab_size
        return [token if token < rows else 0 for token in tokens]

    def _prepare(self, sequence: Sequence, copies: list[BlockCopy]) -> bool:
        """Find blocks for what a sequence is to read, and its place in its grammar."""
        shadow = self._shadows[sequence]
        granted = self.kv.extend(shadow.sequence)
        if granted is None:
            self.forget(sequence)
            return False
        copies += granted
        if shadow.sequence.grammar is not None:
            guesses = tuple([guess.token for guess in shadow.guesses])
            try:
                self._constraints.branch(sequence, shadow.sequence, guesses)
            except InvalidRequestError:
                # It is reported when the large model samples there.
                return False
        return True

    def _run(self, chunks: Rows[Chunk], copies: Rows[BlockCopy]) -> Tensor:
        """Logits of the chunks that sample, valid until the next run."""
        runner = self._runner
        batch = build_batch(chunks, runner.block_size, {}, decode_rows=runner.decode_rows)
        logits = runner.execute(batch, copies)
        for chunk in chunks:
            chunk.sequence.computed += chunk.length
        if logits is None:
            raise RuntimeError("a draft's step was left")
        return logits

    def _sample(self, logits: Tensor, sequences: Rows[Sequence]) -> list[Guess]:
        if not sequences:
            return []
        rows = [self._shadows[sequence].sequence for sequence in sequences]
        try:
            tokens = self._sampler.sample(logits, rows, self._constraints).tokens
        except InvalidRequestError:
            return []
        chosen = logits.gather(1, tokens[:, None])[:, 0]
        confidence = (chosen - torch.logsumexp(logits, dim=1)).exp()
        return [Guess(*pair) for pair in zip(tokens.tolist(), confidence.tolist(), strict=True)]
