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
from functools import partial
from pathlib import Path

import msgspec

from hagane.engine.adapters import Adapters, HeldRequests
from hagane.engine.cache.blocks import KVCache
from hagane.engine.outbox import Outbox
from hagane.engine.sampling.constraints import Constraints, Grammars
from hagane.engine.sampling.sampler import Sampler
from hagane.engine.schedule.admission import check_token_ids
from hagane.engine.schedule.scheduler import Scheduler
from hagane.engine.step.pipeline import StepPipeline
from hagane.engine.step.runner import ModelRunner
from hagane.pool.channel import EngineChannel, MalformedMessage
from hagane.pool.messages import (
    AdapterChecked,
    CancelRequest,
    CheckAdapter,
    EngineConfig,
    EngineFailed,
    EngineReady,
    FailureCode,
    GenerateRequest,
    Loading,
    Shutdown,
    ToEngine,
    UnloadAdapter,
)
from hagane.system.errors import HaganeError, QueueFullError
from hagane.system.logging import configure_logging
from hagane.text.tokenizer import Tokenizer

# By its name in the package: as a program, this module is called __main__.
logger = logging.getLogger("hagane.engine.loop")

# How soon an idle engine notices that an adapter was read.
_LOADING_POLL_SECONDS = 0.002
# How many of an engine's signs of life its client may miss.
_HEARTBEATS = 4
# How long a start is put off for the KV cache's memory; an idle engine goes on with it.
_TOUCHING_SECONDS = 0.75


class Engine:
    """One model, one scheduler, one loop. Reports over `channel` that it is ready when it is made.

    Args:
        config: sizes and the model's directory.
        channel: the way to and from the API's process.
        runner, sampler, adapters: taken instead of those that `config` describes.
        overlap: whether a step is launched before the one before it is finished; by default where
            a device runs beside Python.
    """

    def __init__(
        self,
        config: EngineConfig,
        channel: EngineChannel,
        *,
        runner: ModelRunner | None = None,
        sampler: Sampler | None = None,
        adapters: Adapters | None = None,
        overlap: bool | None = None,
    ) -> None:
        started = time.monotonic()
        self.channel = channel
        self._heartbeat = config.timeout / _HEARTBEATS
        self.outbox = Outbox(channel, self._heartbeat)
        self.runner = runner = runner or ModelRunner(config, self._report_stage)
        self.scheduler = Scheduler(
            KVCache(runner.blocks, runner.block_size, config.prefix_caching),
            max_batch_tokens=config.max_batch_tokens,
            max_sequences=config.max_sequences,
            max_waiting=config.max_waiting,
            context_length=runner.context_length,
        )
        self.adapters = adapters or Adapters(runner.banks, config.adapter_memory)
        self.pipeline = StepPipeline(
            self.scheduler,
            runner,
            sampler or Sampler(runner.operations),
            self.adapters.slots,
            Constraints(Grammars(partial(_read_tokenizer, config.model), runner.vocab_size)),
            self.outbox,
            overlap=runner.asynchronous if overlap is None else overlap,
        )
        self.held = HeldRequests()
        self.running = True
        self._checks: set[str] = set()
        deadline = time.monotonic() + _TOUCHING_SECONDS
        self._report_stage("KV cache")
        while time.monotonic() < deadline and runner.touch():
            pass
        self.outbox.send(
            EngineReady(
                pid=os.getpid(),
                context_length=runner.context_length,
                block_size=runner.block_size,
                blocks_total=runner.blocks,
                load_seconds=time.monotonic() - started,
            )
        )

    def _report_stage(self, stage: str) -> None:
        self.outbox.send(Loading(stage))

    @property
    def busy(self) -> bool:
        """Whether any request is live here."""
        return self.pipeline.busy or len(self.held) > 0

    def run(self) -> None:
        """Until told to end. Raises EOFError or BrokenPipeError when the API process is gone."""
        while self.running:
            # Nothing to do at all: sleep until a message comes.
            idle = not (self.pipeline.busy or self.runner.touch())
            pause = _LOADING_POLL_SECONDS if self.adapters.busy else self._heartbeat
            for message in self.channel.receive(timeout=pause if idle else 0.0):
                self.handle(message)
            self.turn()

    def turn(self) -> None:
        """Run one step and report what became of it."""
        self._follow_adapters()
        deltas = self.pipeline.step()
        adapters = self.adapters.stats(len(self.held))
        stats = msgspec.structs.replace(self.scheduler.stats(), adapters=adapters)
        self.outbox.flush(deltas, stats)

    def handle(self, message: ToEngine | MalformedMessage) -> None:
        """Act on one message; an exception fails the request that it is about."""
        try:
            self._dispatch(message)
        except Exception as error:
            logger.exception("a message could not be handled")
            request_id = getattr(message, "request_id", None)
            if request_id is not None:
                self._fail(request_id, "engine_error", f"The engine refused the request: {error!r}")

    def _dispatch(self, message: ToEngine | MalformedMessage) -> None:
        match message:
            case GenerateRequest():
                self._receive(message)
            case CheckAdapter():
                if self.adapters.want(message.adapter):
                    self.outbox.send(AdapterChecked(message.adapter.digest))
                else:
                    self._checks.add(message.adapter.digest)
            case UnloadAdapter():
                self.adapters.unload(message.digest)
            case CancelRequest():
                self.pipeline.cancel(message.request_id, message.index)
                if message.index is None:
                    self.held.cancel(message.request_id)
            case Shutdown():
                self.running = False
            case MalformedMessage():
                raise ValueError(message.reason)

    def _receive(self, request: GenerateRequest) -> None:
        now = time.monotonic()
        if request.adapter is None or self.adapters.want(request.adapter):
            self._add(request, now)
        elif len(self.held) >= self.scheduler.max_waiting:
            reason = f"{len(self.held)} requests wait for their adapters already; try again later."
            self.outbox.fail(request.request_id, "queue_full", reason)
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
                self.outbox.send(AdapterChecked(event.digest, event.error))
            if not event.loaded and event.error is None:
                continue
            for request, arrived in self.held.release(event.digest):
                if event.error is None:
                    self._add(request, arrived)
                else:
                    self._fail(request.request_id, "adapter_error", event.error)

    def _add(self, request: GenerateRequest, arrived: float) -> None:
        try:
            check_token_ids(request, self.runner.vocab_size)
            self.scheduler.add(request, arrived)
            logger.debug(
                "queued: %d tokens", len(request.prompt), extra={"request_id": request.request_id}
            )
        except HaganeError as error:
            full = isinstance(error, QueueFullError)
            code: FailureCode = "queue_full" if full else "engine_error"
            self.outbox.fail(request.request_id, code, str(error))

    def _fail(self, request_id: str, code: FailureCode, message: str) -> None:
        self.pipeline.cancel(request_id)
        self.outbox.fail(request_id, code, message)


def _read_tokenizer(model: str) -> str:
    return Tokenizer.load(Path(model)).to_json()


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
