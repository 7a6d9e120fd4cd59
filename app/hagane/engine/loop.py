"""The engine process: receive, schedule, execute, sample, emit.

Started by `hagane.pool.launch` as `python -m hagane.engine FD`, where FD is the engine's end of a
socket pair. It ends on `Shutdown`, or when the other end is gone.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from hagane.engine.adapters import Adapters
from hagane.engine.background_thread import BackgroundThread
from hagane.engine.cache.blocks import KVCache
from hagane.engine.cache.setup import make_tiers
from hagane.engine.encoding import EncoderEngine
from hagane.engine.outbox import Outbox
from hagane.engine.parallel.leader import make_runner
from hagane.engine.prerequisites import Prerequisites, Released
from hagane.engine.sampling.compiler import GrammarCompiler
from hagane.engine.sampling.constraints import Constraints, Grammars
from hagane.engine.sampling.grammar_vocabulary import Vocabulary
from hagane.engine.sampling.sampler import Sampler
from hagane.engine.schedule.admission import check_token_ids
from hagane.engine.schedule.plan import IdleWork
from hagane.engine.schedule.scheduler import Scheduler
from hagane.engine.speculative.costs import StepCosts
from hagane.engine.speculative.setup import make_proposer
from hagane.engine.step.pipeline import StepPipeline
from hagane.engine.step.runner import ModelRunner
from hagane.lora.files import Adapter, load_adapter
from hagane.models.config import ModelConfig
from hagane.models.encoder_config import EncoderConfig
from hagane.pool.channel import EngineChannel, MalformedMessage
from hagane.pool.messages import (
    IDLE_PRIORITY,
    AdapterChecked,
    CancelRequest,
    CheckAdapter,
    EngineConfig,
    EngineFailed,
    EngineReady,
    EngineStats,
    FailureCode,
    GenerateRequest,
    Loading,
    Shutdown,
    TierStats,
    ToEngine,
    UnloadAdapter,
)
from hagane.system.errors import HaganeError, QueueFullError
from hagane.system.logging import configure_logging
from hagane.text.tokenizer import read_tokenizer_json

logger = logging.getLogger(__name__)

# How many of an engine's heartbeats its client may miss.
_HEARTBEATS = 4
# How long a start is put off for the KV cache's memory; an idle engine goes on with it.
_PREFAULT_SECONDS = 0.1
# After a start, or the last request: what comes at once is not kept waiting.
_IDLE_SECONDS = 1.0


class Engine:
    """One model, one scheduler, one loop. Reports over `channel` that it is ready when it is made.

    Args:
        config: sizes and the model's directory.
        channel: the way to and from the API's process.
        runner, sampler: taken instead of those that `config` describes.
        read_adapter: as `load_adapter`.
        costs, draft_costs: what decode steps cost, and those of a draft model, for the number of
            tokens to guess; by default as measured.
        overlap: whether a step is launched before the one before it is finished; by default where
            a device runs alongside Python.
    """

    def __init__(
        self,
        config: EngineConfig,
        channel: EngineChannel,
        *,
        runner: ModelRunner | None = None,
        sampler: Sampler | None = None,
        read_adapter: Callable[[Path, ModelConfig], Adapter] = load_adapter,
        overlap: bool | None = None,
        costs: StepCosts | None = None,
        draft_costs: StepCosts | None = None,
    ) -> None:
        started = time.monotonic()
        self.channel = channel
        self._heartbeat = config.timeout / _HEARTBEATS
        self.outbox = Outbox(channel, self._heartbeat)
        self.vocabulary = Vocabulary(partial(read_tokenizer_json, Path(config.model)))
        self.runner = runner = runner or make_runner(config, self._report_stage)
        overlap = runner.asynchronous if overlap is None else overlap
        grammars = Grammars(self.vocabulary, runner.vocab_size)
        constraints = Constraints(grammars)
        self.proposer = proposer = make_proposer(
            config,
            runner,
            constraints,
            self._report_stage,
            overlap=overlap,
            costs=costs,
            draft_costs=draft_costs,
        )
        self.tiers = make_tiers(config, runner, channel.wake)
        self.cache = KVCache(runner.blocks, runner.block_size, config.prefix_caching, self.tiers)
        self.scheduler = Scheduler(
            self.cache,
            max_batch_tokens=config.max_batch_tokens,
            max_sequences=config.max_sequences,
            max_waiting=config.max_waiting,
            context_length=runner.context_length,
            proposer=proposer,
        )
        self.adapters = Adapters(
            runner.banks,
            config.adapter_memory,
            BackgroundThread("adapters", channel.wake),
            read_adapter,
        )
        self.pipeline = StepPipeline(
            self.scheduler,
            runner,
            sampler or Sampler(runner.operations),
            self.adapters.slots,
            constraints,
            self.outbox,
            overlap=overlap,
            proposer=proposer,
            leaves=self._goes_before_idle_work,
            tiers=self.tiers,
        )
        self.prerequisites = Prerequisites(
            self.adapters,
            GrammarCompiler(grammars, BackgroundThread("grammars", channel.wake)),
            *([self.tiers.prefetch(self.cache)] if self.tiers and self.tiers.disk else []),
            limit=config.max_waiting,
        )
        # Messages read within a step.
        self._early: list[ToEngine | MalformedMessage] = []
        self.running = True
        self._prefault()
        self._last_busy = time.monotonic()
        self._report_ready(time.monotonic() - started)

    def _prefault(self) -> None:
        """Map the part of the KV cache that a bounded time suffices for."""
        self._report_stage("KV cache")
        deadline = time.monotonic() + _PREFAULT_SECONDS
        while time.monotonic() < deadline and self.runner.prefault():
            pass

    def _report_ready(self, load_seconds: float) -> None:
        self.outbox.send(
            EngineReady(
                pid=os.getpid(),
                context_length=self.runner.context_length,
                block_size=self.runner.block_size,
                blocks_total=self.runner.blocks,
                load_seconds=load_seconds,
            )
        )

    def _report_stage(self, stage: str) -> None:
        self.outbox.send(Loading(stage))

    @property
    def busy(self) -> bool:
        """Whether any request is live here."""
        return self.pipeline.busy or len(self.prerequisites) > 0

    def run(self) -> None:
        """Run until a message ends it. Raises EOFError or BrokenPipeError if the server is gone."""
        while self.running:
            self.use_idle_time(time.monotonic())
            # Nothing to do at all: sleep until a message comes, or what requests wait for.
            # Threads that load what requests wait for get on faster while this one sleeps.
            waits = len(self.prerequisites) > 0
            idle = not self.pipeline.busy and (waits or not self.runner.prefault())
            pause = self.prerequisites.pause(time.monotonic(), self._heartbeat)
            self.receive(pause if idle else 0.0)
            self.turn()
        if self.tiers is not None:
            self.tiers.close()
        self.runner.close()

    def use_idle_time(self, now: float) -> None:
        """Read the vocabulary of grammars once no request is about to follow the last one."""
        if self.busy:
            self._last_busy = now
        elif now - self._last_busy > _IDLE_SECONDS:
            self.vocabulary.read()

    def receive(self, timeout: float) -> None:
        """Act on the messages at hand; where there are none, wait up to `timeout` seconds."""
        early, self._early = self._early, []
        for message in early + self.channel.receive(0.0 if early else timeout):
            self.handle(message)

    def turn(self) -> None:
        """Run one step and report what became of it."""
        if self.prerequisites.busy:
            now, in_use = time.monotonic(), self.scheduler.digests
            for released in self.prerequisites.poll(now, in_use):
                self._release(released)
        self.scheduler.idle_work = self._idle_work()
        deltas = self.pipeline.step()
        self.outbox.flush(deltas, self._stats())
        if self.tiers is not None:
            self.tiers.collect()
            self.pipeline.settle()

    def _stats(self) -> EngineStats:
        adapters = self.adapters.stats(len(self.prerequisites))
        tiers = TierStats() if self.tiers is None else self.tiers.stats()
        return msgspec.structs.replace(self.scheduler.stats(), adapters=adapters, tiers=tiers)

    def _idle_work(self) -> IdleWork:
        """Idle sequences make way for what is about to come, unless they hold what it waits for."""
        if not self.prerequisites.urgent:
            return IdleWork.YIELDS
        return IdleWork.GOES_ON if self.adapters.lacks_room else IdleWork.STOPS

    def _goes_before_idle_work(self) -> bool:
        """Whether there is a message now that a step of idle priority must not keep waiting."""
        try:
            self._early += self.channel.receive(timeout=0.0)
        except EOFError:
            # The loop meets it again.
            return True
        return any(
            isinstance(message, GenerateRequest) and message.priority < IDLE_PRIORITY
            for message in self._early
        )

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
                self.adapters.check(message.adapter, partial(self._checked, message.adapter.digest))
            case UnloadAdapter():
                self.adapters.unload(message.digest)
            case CancelRequest():
                self.pipeline.cancel(message.request_id, message.index)
                if message.index is None:
                    self.prerequisites.cancel(message.request_id)
            case Shutdown():
                self.running = False
            case MalformedMessage():
                raise ValueError(message.reason)

    def _receive(self, request: GenerateRequest) -> None:
        now = time.monotonic()
        try:
            ready = self.prerequisites.ready(request, now)
        except QueueFullError as error:
            self.outbox.fail(request.request_id, "queue_full", str(error))
            return
        if ready:
            self._add(request, now)

    def _release(self, released: Released) -> None:
        request, failure = released.request, released.failure
        if failure is None:
            self._add(request, released.arrived)
        else:
            self._fail(request.request_id, failure.code, failure.message)

    def _checked(self, digest: str, error: str | None) -> None:
        self.outbox.send(AdapterChecked(digest, error))

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
            engine = _make_engine(config, channel)
        except HaganeError as error:
            channel.send(EngineFailed(error.code, str(error)))
            return
        # All objects made so far stay: a full collection, 90 ms for which all streams wait, mostly
        # looked through torch's own objects.
        gc.freeze()
        gc.enable()
        if isinstance(engine, Engine):
            engine.runner.pin_main_thread()
        engine.run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        logger.info("the API process is gone; the engine ends")


def _make_engine(config: EngineConfig, channel: EngineChannel) -> Engine | EncoderEngine:
    encoder = EncoderConfig.find(Path(config.model))
    return Engine(config, channel) if encoder is None else EncoderEngine(config, encoder, channel)


def _receive_config(channel: EngineChannel) -> EngineConfig:
    while not (messages := channel.receive(timeout=None)):
        pass
    config, *more = messages
    if any(isinstance(message, Shutdown) for message in more):
        raise EOFError("ended before it began")
    if not isinstance(config, EngineConfig):
        raise TypeError(f"the first message must be the engine's config, not {type(config)}")
    return config
