"""The engine process: receive, schedule, execute, sample, emit.

Started by `hagane.pool.client` as `python -m hagane.engine.loop FD`, where FD is the engine's end
of a socket pair. It ends when told to, or when the other end is gone.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from hagane.engine.adapters import Adapters, HeldRequests
from hagane.engine.cache.blocks import KVCache
from hagane.engine.sampling.sampler import Drawn, SampledTokens, Sampler, prompt_logprobs
from hagane.engine.schedule.plan import Sampled, Schedule
from hagane.engine.schedule.scheduler import Scheduler
from hagane.engine.step.batch import Batch, build_batch
from hagane.engine.step.runner import ModelRunner
from hagane.kernels.transfer import send
from hagane.pool.channel import EngineChannel
from hagane.pool.messages import (
    AdapterChecked,
    CancelRequest,
    CheckAdapter,
    EngineConfig,
    EngineFailed,
    EngineReady,
    EngineStats,
    FailureCode,
    GenerateRequest,
    RequestFailed,
    Shutdown,
    StepOutput,
    ToEngine,
    TokenDelta,
    TokenLogprobs,
    UnloadAdapter,
)
from hagane.system.errors import HaganeError, QueueFullError
from hagane.system.logging import configure_logging

# By its name in the package: as a program, this module is called __main__.
logger = logging.getLogger("hagane.engine.loop")

# How soon an idle engine notices that an adapter was read.
_LOADING_POLL_SECONDS = 0.002
# How long a start is put off for the KV cache's memory; an idle engine goes on with it.
_TOUCHING_SECONDS = 0.75


@dataclass(frozen=True)
class Flight:
    """A step that the device was given, and what it draws."""

    schedule: Schedule
    drawn: Drawn

    @property
    def must_land(self) -> bool:
        """Whether the next step cannot be prepared without knowing this one's tokens."""
        return any(s.needs_history and s.blocks for s in self.schedule.samplers)


class Engine:
    """One model, one scheduler, one loop.

    On a device that runs beside Python, step n + 1 is scheduled and launched while step n runs: its
    input is what n draws, which never leaves the device on the way. Then n's tokens are waited for,
    and said. Elsewhere a step lands before the next one is prepared.
    """

    def __init__(self, config: EngineConfig, channel: EngineChannel) -> None:
        started = time.monotonic()
        self.channel = channel
        self.runner = ModelRunner(config)
        self.scheduler = Scheduler(
            KVCache(self.runner.blocks, self.runner.block_size, config.prefix_caching),
            max_batch_tokens=config.max_batch_tokens,
            max_sequences=config.max_sequences,
            max_waiting=config.max_waiting,
            context_length=self.runner.context_length,
        )
        self.sampler = Sampler(self.runner.operations)
        self.adapters = Adapters(self.runner.banks, config.adapter_memory)
        self.held = HeldRequests()
        self._checks: set[str] = set()
        self.running = True
        self._flight: Flight | None = None
        self._failures: list[RequestFailed] = []
        self._prompt_logprobs: dict[str, list[TokenLogprobs | None]] = {}
        self._announced: EngineStats | None = None
        deadline = time.monotonic() + _TOUCHING_SECONDS
        while time.monotonic() < deadline and self.runner.touch():
            pass
        channel.send(
            EngineReady(
                pid=os.getpid(),
                context_length=self.runner.context_length,
                block_size=self.runner.block_size,
                blocks_total=self.runner.blocks,
                load_seconds=time.monotonic() - started,
            )
        )

    def run(self) -> None:
        """Until told to end. Raises EOFError or BrokenPipeError when the API process is gone."""
        while self.running:
            # Nothing to do at all: sleep until a message comes, having said so.
            idle = not (self.scheduler.has_work or self._flight or self.runner.touch())
            pause = _LOADING_POLL_SECONDS if self.adapters.busy else None
            for message in self.channel.receive(timeout=pause if idle else 0.0):
                self._handle(message)
            self._follow_adapters()
            self._emit(self._turn())

    def _handle(self, message: ToEngine) -> None:
        match message:
            case GenerateRequest():
                self._receive(message)
            case CheckAdapter():
                if self.adapters.want(message.adapter):
                    self.channel.send(AdapterChecked(message.adapter.digest))
                else:
                    self._checks.add(message.adapter.digest)
            case UnloadAdapter():
                self.adapters.unload(message.digest)
            case CancelRequest():
                self.scheduler.cancel(message.request_id, message.index)
                if message.index is None:
                    self.held.cancel(message.request_id)
                    self._prompt_logprobs.pop(message.request_id, None)
            case Shutdown():
                self.running = False

    def _receive(self, request: GenerateRequest) -> None:
        now = time.monotonic()
        if request.adapter is None or self.adapters.want(request.adapter):
            self._add(request, now)
        elif len(self.held) >= self.scheduler.max_waiting:
            reason = f"{len(self.held)} requests wait for their adapters already; try again later."
            self._failures.append(RequestFailed(request.request_id, "queue_full", reason))
        else:
            self.held.add(request, now)

    def _follow_adapters(self) -> None:
        """Requests whose adapter has come go on to the scheduler, all others wait or fail."""
        if not self.adapters.busy:
            return
        for request_id in self.held.expire(time.monotonic()):
            self._fail(request_id, "deadline_exceeded", "The request's deadline has passed.")
        for event in self.adapters.poll(self.scheduler.adapters):
            if event.digest in self._checks:
                self._checks.discard(event.digest)
                self.channel.send(AdapterChecked(event.digest, event.error))
            if not event.loaded and event.error is None:
                continue
            for request, arrived in self.held.release(event.digest):
                if event.error is None:
                    self._add(request, arrived)
                else:
                    self._fail(request.request_id, "adapter_error", event.error)

    def _add(self, request: GenerateRequest, arrived: float) -> None:
        try:
            self.scheduler.add(request, arrived)
            logger.debug(
                "queued: %d tokens", len(request.prompt), extra={"request_id": request.request_id}
            )
        except HaganeError as error:
            full = isinstance(error, QueueFullError)
            code: FailureCode = "queue_full" if full else "engine_error"
            self._refuse(request.request_id, code, str(error))

    def _turn(self) -> list[TokenDelta]:
        """Launch a step and land one: the one before it, where a device runs beside Python."""
        deltas: list[TokenDelta] = []
        before, self._flight = self._flight, None
        if before is not None and before.must_land:
            deltas += self._land(before)
            before = None
        launched = self._launch(before) if self.scheduler.has_work else None
        if before is not None:
            deltas += self._land(before)
        if launched is not None and not self.runner.asynchronous:
            return self._land(launched)
        self._flight = launched
        return deltas

    def _launch(self, before: Flight | None) -> Flight | None:
        """The next step, while `before` is under way; None if nothing can run until it lands."""
        schedule = self.scheduler.schedule(time.monotonic())
        for request_id in schedule.expired:
            self._fail(request_id, "deadline_exceeded", "The request's deadline has passed.")
        if not schedule.chunks:
            return None
        runner = self.runner
        drawing = None if before is None else before.drawn
        batch = build_batch(schedule.chunks, runner.block_size, self.adapters.slots, drawing)
        logits = runner.execute(batch, schedule.copies)
        self._collect_prompt_logprobs(batch, logits)
        if batch.sampled is not None:
            (rows,) = send([torch.tensor(batch.sampled, dtype=torch.int64)], logits.device)
            logits = logits[rows]
        drawn = self.sampler.draw(logits, schedule.samplers)
        self.scheduler.advance(schedule)
        return Flight(schedule, drawn)

    def _land(self, flight: Flight) -> list[TokenDelta]:
        """Wait for what a step drew. Sequences that are gone since are passed over."""
        sampled = flight.drawn.wait()
        samplers = flight.schedule.samplers
        for request_id in {samplers[i].request_id for i in sampled.failed if samplers[i].blocks}:
            self._fail(
                request_id,
                "engine_error",
                "The model produced logits that are not numbers for this request.",
            )
        results = self.scheduler.update(flight.schedule, sampled.tokens)
        return [self._delta(result, sampled) for result in results]

    def _fail(self, request_id: str, code: FailureCode, message: str) -> None:
        self.scheduler.cancel(request_id)
        self._prompt_logprobs.pop(request_id, None)
        self._refuse(request_id, code, message)

    def _refuse(self, request_id: str, code: FailureCode, message: str) -> None:
        logger.warning("%s: %s", code, message, extra={"request_id": request_id})
        self._failures.append(RequestFailed(request_id, code, message))

    def _collect_prompt_logprobs(self, batch: Batch, logits: Tensor) -> None:
        for chunk, start in batch.prompts:
            sequence = chunk.sequence
            store = self._prompt_logprobs.setdefault(
                sequence.request_id, [None] * sequence.prompt_length
            )
            # Row p predicts token p + 1; the prompt's last row predicts the first new token.
            targets = sequence.tokens[chunk.start + 1 : chunk.start + 1 + chunk.length]
            if not targets:
                continue
            entries = prompt_logprobs(
                logits[start : start + len(targets)],
                targets,
                sequence.sampling.prompt_logprobs or 0,
            )
            store[chunk.start + 1 : chunk.start + 1 + len(entries)] = entries

    def _delta(self, result: Sampled, sampled: SampledTokens) -> TokenDelta:
        sequence = result.sequence
        first = sequence.generated == 1
        prompt = self._prompt_logprobs.pop(sequence.request_id, None) if first else None
        logprobs = sampled.logprobs.get(sequence)
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
            tokens=(result.token,),
            logprobs=None if logprobs is None else (logprobs,),
            prompt_logprobs=None if prompt is None else tuple(prompt),
            finish_reason=result.finish_reason,
            stopped_on_token=result.stopped_on_token,
            cached_tokens=sequence.cached_tokens,
            queue_seconds=sequence.queue_seconds,
        )

    def _emit(self, deltas: Sequence[TokenDelta]) -> None:
        """One message per step, and one more when only the gauges changed."""
        stats = msgspec.structs.replace(
            self.scheduler.stats(), adapters=self.adapters.stats(len(self.held))
        )
        if deltas or self._failures or stats != self._announced:
            self.channel.send(
                StepOutput(deltas=tuple(deltas), failures=tuple(self._failures), stats=stats)
            )
            self._failures.clear()
            self._announced = stats


def main(descriptor: int) -> None:
    """Run the engine on the socket `descriptor`, the first message on which is its config."""
    # The terminal's Ctrl-C and its closing reach the whole process group: ending is the API's
    # decision.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    channel = EngineChannel(socket.socket(fileno=descriptor))
    try:
        config = _receive_config(channel)
        configure_logging(config.log_level, config.log_format)
        try:
            engine = Engine(config, channel)
        except HaganeError as error:
            channel.send(EngineFailed(error.code, str(error)))
            return
        # What is there by now stays: a full collection, 90 ms for which all streams wait, mostly
        # looked through torch's own objects.
        gc.freeze()
        engine.runner.settle()
        engine.run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        logger.info("the API process is gone; the engine ends")


def _receive_config(channel: EngineChannel) -> EngineConfig:
    while not (messages := channel.receive(timeout=None)):
        pass
    config, *more = messages
    if any(isinstance(message, Shutdown) for message in more):
        raise EOFError("told to end before it began")
    if not isinstance(config, EngineConfig):
        raise TypeError(f"the first message must be the engine's config, not {type(config)}")
    return config


if __name__ == "__main__":
    main(int(sys.argv[1]))
