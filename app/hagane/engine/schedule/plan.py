"""Decisions of the scheduler and their results: plain data.

Objects made for every sequence and step are msgspec structs: made in a fifth of the time
that a frozen dataclass takes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import chain
from typing import Literal

import msgspec

from hagane.engine.cache.blocks import BlockCopy
from hagane.engine.schedule.sequence import Sequence
from hagane.pool.messages import FinishReason


class IdleWork(Enum):
    """What becomes of idle sequences, apart from what the scheduler sees.

    YIELDS: they run while no other sequence runs or waits. STOPS: not even then, for a request is
    about to arrive. GOES_ON: next to others, for some wait for what idle ones hold.
    """

    YIELDS = "yields"
    STOPS = "stops"
    GOES_ON = "goes on"


ProposerName = Literal["lookup", "draft"]


class Proposal(msgspec.Struct, frozen=True):
    """Guessed tokens that may follow, and who guessed them."""

    tokens: tuple[int, ...]
    proposer: ProposerName


class Chunk(msgspec.Struct, frozen=True):
    """Tokens `[start, start + length)` of a sequence, to be run in one step.

    `samplers` are the sequences that sample their next token from the logits of the chunk's last
    token: none while a prefill is unfinished, the sequence itself, and after it, when the prefill
    of a request with `n` > 1 is done, its siblings, which do not run before `advance`.
    `proposed` are guessed tokens at the end of a decoding sequence's chunk that this step verifies:
    its only sampler samples from the logits of every token of the chunk, and gets 1 to
    len(proposed) + 1 tokens in `Scheduler.update`. `proposer` is who guessed them.
    """

    sequence: Sequence
    start: int
    length: int
    samplers: tuple[Sequence, ...] = ()
    proposed: tuple[int, ...] = ()
    proposer: ProposerName = "lookup"

    @classmethod
    def of(cls, sequence: Sequence, length: int, proposal: Proposal | None = None) -> Chunk:
        """The next `length` tokens of a sequence, and guesses after them."""
        samplers: tuple[Sequence, ...] = ()
        if length == sequence.uncomputed:
            samplers = (sequence, *map(sequence.sibling, sequence.pending))
        if proposal is None:
            return cls(sequence, sequence.computed, length, samplers)
        whole = length + len(proposal.tokens)
        return cls(sequence, sequence.computed, whole, samplers, proposal.tokens, proposal.proposer)

    @property
    def generated(self) -> bool:
        """Whether its tokens are of the answer, but none that is guessed.

        Several of them are the last sampled one and those that a grammar has put after it.
        """
        return not self.proposed and self.start >= self.sequence.prompt_length

    @property
    def order(self) -> int:
        """Sort key within a step: what may run token by token comes first."""
        if self.length == 1 or self.proposed:
            return 0
        return 1 if self.generated else 2

    @property
    def samples(self) -> bool:
        """Whether the logits of the chunk's last token are wanted."""
        return bool(self.samplers)


@dataclass(frozen=True)
class Schedule:
    """One step's work.

    `chunks` of decoding sequences come first, as attention kernels like them. `copies` are to be
    done before the step, in order (or all sources read before any destination is written: a source
    may be the destination of a later copy, never of an earlier one).
    `expired` are the ids of requests whose deadline has passed; they are gone already.
    """

    chunks: tuple[Chunk, ...]
    copies: tuple[BlockCopy, ...]
    expired: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Tokens that pass through the model in this step."""
        return sum(chunk.length for chunk in self.chunks)

    def affected(self, running: Iterable[Sequence]) -> list[str]:
        """Ids of the requests that cannot go on if this was not executed.

        Those are the ones that were to run, and the ones among `running` whose blocks were to be
        copied.
        """
        copied = {destination for _, destination in self.copies}
        lost = [s for s in running if copied.intersection(s.blocks)] if copied else []
        planned = [chunk.sequence for chunk in self.chunks]
        return list(dict.fromkeys(s.request_id for s in chain(planned, lost)))

    @property
    def idle(self) -> bool:
        """Whether all that runs is of idle priority, and may be done later instead."""
        return all(chunk.sequence.idle for chunk in self.chunks)

    @cached_property
    def samplers(self) -> tuple[Sequence, ...]:
        """All sequences that sample a token, in the order `Scheduler.update` wants the tokens."""
        return tuple(chain.from_iterable(chunk.samplers for chunk in self.chunks))


class Continuation(msgspec.Struct, frozen=True):
    """A grammar's answer to a sampled token: the tokens that must follow, or the end."""

    forced: tuple[int, ...] = ()
    ended: bool = False


class Sampled(msgspec.Struct, frozen=True):
    """Tokens that became part of a sequence, and whether they were its last ones.

    `stopped_on_token`: the last token is an end-of-text or stop token, not text.
    """

    sequence: Sequence
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stopped_on_token: bool = False
