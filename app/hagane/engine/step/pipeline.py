"""One step of the engine: schedule, forward, finish the previous step, sample.

On a device that runs alongside Python, the forward pass of step n + 1 is launched while step n
runs. Its input is the tokens that n samples, which stay on the device. Then the host waits for n's
tokens and appends them to their sequences, and n + 1 is sampled with all earlier tokens known:
penalties and masks that depend on them make no batch wait. Elsewhere a step is finished before the
next one is scheduled. There a step of idle priority alone is left half done when a request arrives
that goes before it: what it has written into the cache is written again.

Faults stay where they belong. An exception that one row causes fails that row's request, one in the
forward pass fails the requests of that step, and any other fails all requests and empties the KV
cache. Only the loss of the device ends the process: a new one may find it working.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hagane.engine.cache.tiers import KVTiers
from hagane.engine.outbox import Outbox
from hagane.engine.sampling.constraints import Constraints
from hagane.engine.sampling.sampler import Sampler, TokensInFlight, prompt_logprobs
from hagane.engine.schedule.plan import Chunk, Continuation, Sampled, Schedule
from hagane.engine.schedule.scheduler import Scheduler
from hagane.engine.schedule.sequence import Phase, Sequence
from hagane.engine.speculative.proposer import Proposer
from hagane.engine.step.batch import Batch, build_batch
from hagane.engine.step.pooling import PendingEmbeddings
from hagane.engine.step.runner import ModelRunner
from hagane.engine.step.verification import accept, rows_of
from hagane.kernels.transfer import send
from hagane.pool.messages import FailureCode, SamplingParams, TokenDelta, TokenLogprobs
from hagane.system.errors import InvalidRequestError

logger = logging.getLogger("hagane.engine.loop")


@dataclass(frozen=True)
class ForwardPass:
    """A step whose logits [rows, vocab] the device computes since `started`, in seconds."""

    started: float
    schedule: Schedule
    batch: Batch
    logits: Tensor


@dataclass(frozen=True)
class InFlightStep:
    """A step that is launched to its end, and the tokens that it samples."""

    schedule: Schedule
    tokens: TokensInFlight


class StepPipeline:
    """Runs the steps of one model.

    `slots` is the slot of every loaded adapter by its digest, `constraints` knows the grammars that
    sequences follow. With `overlap` a step is launched before the previous one is finished. The
    scheduler's `proposer`, if any, hears how long decode steps take. `leaves` is asked in steps of
    idle priority whether a request waits for their end. `tiers` are the memory below the cache.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        sampler: Sampler,
        slots: Mapping[str, int],
        constraints: Constraints,
        outbox: Outbox,
        *,
        overlap: bool,
        proposer: Proposer | None = None,
        leaves: Callable[[], bool] | None = None,
        tiers: KVTiers | None = None,
    ) -> None:
        self._tiers = tiers
        self._scheduler, self._runner, self._sampler = scheduler, runner, sampler
        self._slots, self._outbox, self._overlap = slots, outbox, overlap
        self._constraints, self._proposer, self._leaves = constraints, proposer, leaves
        self._in_flight: InFlightStep | None = None
        self._prompt_logprobs: dict[str, list[TokenLogprobs | None]] = {}
        self._embeddings = PendingEmbeddings()

    @property
    def in_flight(self) -> bool:
        """Whether a step is launched whose tokens are not known yet."""
        return self._in_flight is not None

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return self._scheduler.has_work or self.in_flight

    def step(self) -> list[TokenDelta]:
        """Run one step; returns what became known meanwhile.

        Raises torch.AcceleratorError when the device is lost.
        """
        try:
            return self._step()
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self._fail_everything(error)
            return []

    def settle(self) -> None:
        """Once nothing is left to run: save the blocks that the last step filled."""
        if self.busy:
            return
        try:
            self._exchange_blocks()
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self._fail_everything(error)

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """As `Scheduler.cancel`."""
        self._scheduler.cancel(request_id, index)
        if index is None:
            self._prompt_logprobs.pop(request_id, None)
            self._embeddings.forget(request_id)

    def _step(self) -> list[TokenDelta]:
        forward = self._forward() if self._scheduler.has_work else None
        deltas = self._finish_previous()
        launched = None if forward is None else self._sample(forward)
        if forward is None or launched is None or self._overlap:
            self._in_flight = launched
            return deltas
        deltas = self._finish(launched)
        rows = len(forward.batch.token_ids)
        if self._proposer is not None and rows == forward.batch.decodes:
            self._proposer.observe(rows, time.perf_counter() - forward.started)
        return deltas

    def _forward(self) -> ForwardPass | None:
        """Launch the next step's forward pass; None if there is none, it fails or is left."""
        schedule = self._scheduler.schedule(time.monotonic())
        for request_id in schedule.expired:
            self._fail(request_id, "deadline_exceeded", "The request's deadline has passed.")
        if not schedule.chunks:
            return None
        # Guesses have taken a time of their own.
        started = time.perf_counter()
        before = None if self._in_flight is None else self._in_flight.tokens
        try:
            self._exchange_blocks()
            runner = self._runner
            rows = runner.decode_rows if runner.verifies else 0
            batch = build_batch(schedule.chunks, runner.block_size, self._slots, before, rows)
            leaves = self._leaves if schedule.idle else None
            logits = self._runner.execute(batch, schedule.copies, leaves)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            for request_id in self._scheduler.affected(schedule):
                self._fail_for(error, request_id)
            self._scheduler.check()
            return None
        return None if logits is None else ForwardPass(started, schedule, batch, logits)

    def _exchange_blocks(self) -> None:
        if self._tiers is not None:
            self._tiers.exchange(self._scheduler.kv.take_moves())

    def _finish_previous(self) -> list[TokenDelta]:
        previous, self._in_flight = self._in_flight, None
        return [] if previous is None else self._finish(previous)

    def _sample(self, forward: ForwardPass) -> InFlightStep:
        """Launch the sampling of a step; every earlier token of its sequences is known."""
        batch, logits = forward.batch, forward.logits
        sequences = rows_of(forward.schedule, self._constraints)
        for chunk, start in batch.prompts:
            if chunk.sequence.phase is Phase.RUNNING:
                self._collect_prompt_logprobs(chunk, logits, start)
        if batch.pooled and self._runner.hidden is not None:
            self._embeddings.collect(batch.pooled, self._runner.hidden)
        if batch.sampled is not None:
            (rows,) = send([torch.tensor(batch.sampled, dtype=torch.int64)], logits.device)
            logits = logits[rows]
        tokens = self._sample_rows(logits, sequences)
        self._scheduler.advance(forward.schedule)
        return InFlightStep(forward.schedule, tokens)

    def _sample_rows(self, logits: Tensor, sequences: Rows[Sequence]) -> TokensInFlight:
        """As `Sampler.sample`; rows that cannot be sampled fail their requests alone."""
        rows = list(sequences)
        while True:
            try:
                return self._sampler.sample(logits, rows, self._constraints)
            except Exception:
                logger.exception("a step could not be sampled; its rows are sampled one by one")
                # Attempts count as time that grammars take: a row may fail in a later one only.
                if not self._replace_failing(logits, rows):
                    raise

    def _replace_failing(self, logits: Tensor, rows: list[Sequence]) -> bool:
        """Fail the requests of rows that cannot be sampled, and replace these; False if all can."""
        failed = set[str]()
        for row, sequence in enumerate(rows):
            # One without an id was put there before.
            if not sequence.request_id:
                continue
            try:
                self._sampler.sample(logits[row : row + 1], [sequence], self._constraints)
            except Exception as error:
                # One that finished with the previous step was answered already.
                if sequence.phase is not Phase.FINISHED and sequence.request_id not in failed:
                    self._fail_for(error, sequence.request_id)
                failed.add(sequence.request_id)
                greedy = SamplingParams(max_tokens=1, temperature=0.0)
                rows[row] = replace(
                    sequence, request_id="", sampling=greedy, adjusts=False, grammar=None
                )
        return bool(failed)

    def _finish(self, step: InFlightStep) -> list[TokenDelta]:
        """Wait for what a step sampled. Sequences that have ended since are passed over."""
        samplers = step.schedule.samplers
        accepted = accept(step.schedule, step.tokens.sequences, step.tokens.wait())
        failed = {
            sequence.request_id
            for sequence, found in zip(samplers, accepted, strict=True)
            if found.failed and sequence.phase is Phase.RUNNING
        }
        for request_id in failed:
            self._fail(
                request_id,
                "engine_error",
                "The model produced logits that are not numbers for this request.",
            )
        tokens = [found.tokens for found in accepted]
        continuations: dict[Sequence, Continuation] = {}
        for row, sequence in enumerate(samplers):
            if sequence.grammar is not None and sequence.phase is Phase.RUNNING:
                tokens[row] = self._follow(sequence, tokens[row], continuations)
        logprobs = {s: found.logprobs for s, found in zip(samplers, accepted, strict=True)}
        results = self._scheduler.update(step.schedule, tokens, continuations)
        return [self._delta(result, logprobs[result.sequence]) for result in results]

    def _follow(
        self,
        sequence: Sequence,
        tokens: tuple[int, ...],
        continuations: dict[Sequence, Continuation],
    ) -> tuple[int, ...]:
        """Go on in a grammar; returns the tokens before its end, or before some that must follow.

        Once the next step is launched, no tokens can be put between.
        """
        try:
            for count, token in enumerate(tokens, start=1):
                found = self._constraints.follow(sequence, [token], forced=not self._overlap)
                continuations[sequence] = found
                if found.forced or found.ended:
                    return tokens[:count]
        except Exception as error:
            self._fail_for(error, sequence.request_id)
        return tokens

    def _collect_prompt_logprobs(self, chunk: Chunk, logits: Tensor, start: int) -> None:
        """Of the prompt tokens in `chunk`, whose first row of logits is `start`."""
        sequence = chunk.sequence
        # Row p predicts token p + 1; the prompt's last row predicts the first new token.
        targets = sequence.tokens[chunk.start + 1 : chunk.start + 1 + chunk.length]
        try:
            store = self._prompt_logprobs.setdefault(
                sequence.request_id, [None] * sequence.prompt_length
            )
            if targets:
                rows, top = logits[start : start + len(targets)], sequence.sampling.prompt_logprobs
                entries = prompt_logprobs(rows, targets, top or 0)
                store[chunk.start + 1 : chunk.start + 1 + len(entries)] = entries
        except Exception as error:
            self._fail_for(error, sequence.request_id)

    def _delta(self, result: Sampled, logprobs: tuple[TokenLogprobs, ...] | None) -> TokenDelta:
        sequence = result.sequence
        first = sequence.generated == len(result.tokens)
        prompt = self._prompt_logprobs.pop(sequence.request_id, None) if first else None
        if result.finish_reason is not None:
            logger.debug(
                "finished (%s): %d tokens",
                result.finish_reason,
                sequence.generated,
                extra={"request_id": sequence.request_id},
            )
        return TokenDelta(
            request_id=sequence.request_id,
            index=sequence.index,
            # The token after a prompt that is embedded is nobody's.
            tokens=() if sequence.pooling else result.tokens,
            logprobs=None if logprobs is None else logprobs[: len(result.tokens)],
            prompt_logprobs=None if prompt is None else tuple(prompt),
            finish_reason=result.finish_reason,
            stopped_on_token=result.stopped_on_token,
            cached_tokens=sequence.cached_tokens,
            queue_seconds=sequence.queue_seconds,
            embedding=self._embeddings.take(sequence) if sequence.pooling else None,
        )

    def _fail(self, request_id: str, code: FailureCode, message: str) -> None:
        self.cancel(request_id)
        self._outbox.fail(request_id, code, message)

    def _fail_for(self, error: Exception, request_id: str) -> None:
        """Fail a request for an exception that is being handled."""
        if isinstance(error, InvalidRequestError):
            # Known only here: a grammar that became too complex, say.
            self._fail(request_id, "invalid_request", str(error))
            return
        logger.error("a request failed", exc_info=error, extra={"request_id": request_id})
        message = f"The engine could not run this request ({type(error).__name__}); see its log."
        self._fail(request_id, "engine_error", message)

    def _fail_everything(self, error: Exception) -> None:
        """Start over: the state of sequences and blocks is unknown."""
        logger.error("a step failed and with it all requests", exc_info=error)
        self._in_flight = None
        self._prompt_logprobs.clear()
        self._embeddings = PendingEmbeddings()
        for request_id in self._scheduler.reset():
            message = f"The engine failed in a step ({type(error).__name__}). Send it again."
            self._outbox.fail(request_id, "engine_error", message)
