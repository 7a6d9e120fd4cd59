"""The engine of an encoder: texts in, embeddings out, or pairs of texts in and their scores out.

Nothing is generated and nothing cached.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from pathlib import Path

import torch
from torch import Tensor

from hagane.engine.outbox import Outbox
from hagane.engine.schedule.admission import check_token_ids
from hagane.engine.step.pooling import as_bytes
from hagane.engine.step.runner import resolve_dtype
from hagane.kernels.devices import resolve_device
from hagane.models.encoder_config import EncoderConfig
from hagane.pool.channel import EngineChannel, MalformedMessage
from hagane.pool.messages import (
    IDLE_PRIORITY,
    AdapterChecked,
    CancelRequest,
    CheckAdapter,
    EngineConfig,
    EngineReady,
    EngineStats,
    GenerateRequest,
    Loading,
    Shutdown,
    ToEngine,
    TokenDelta,
)
from hagane.system.errors import HaganeError
from hagane.weights.load_encoder import load_encoder, load_head

logger = logging.getLogger("hagane.engine.loop")

_HEARTBEATS = 4


class EncoderEngine:
    """Answers requests with `pooling` by one forward pass for as many texts as fit a step.

    Reports over `channel` that it is ready when it is made.
    """

    def __init__(
        self, config: EngineConfig, encoder: EncoderConfig, channel: EngineChannel
    ) -> None:
        started = time.monotonic()
        self._config, self._channel = config, channel
        self._heartbeat = config.timeout / _HEARTBEATS
        self._outbox = Outbox(channel, self._heartbeat)
        self._outbox.send(Loading("weights"))
        self._device = resolve_device(config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        dtype = resolve_dtype(config.dtype, "float32")
        directory, device = Path(config.model), self._device
        self._model = load_encoder(directory, encoder, dtype=dtype, device=device)
        self._head = None
        if encoder.scale is not None:
            self._head = load_head(directory, encoder, dtype=dtype, device=device)
        self._waiting: deque[tuple[float, GenerateRequest]] = deque()
        self._steps = 0
        self.running = True
        self._outbox.send(
            EngineReady(
                pid=os.getpid(),
                context_length=encoder.max_position_embeddings,
                block_size=config.block_size,
                blocks_total=0,
                load_seconds=time.monotonic() - started,
            )
        )

    def run(self) -> None:
        """Run until the end. Raises EOFError or BrokenPipeError when the API process is gone."""
        while self.running:
            timeout = 0.0 if self._waiting else self._heartbeat
            for message in self._channel.receive(timeout=timeout):
                self.handle(message)
            self.turn()

    def handle(self, message: ToEngine | MalformedMessage) -> None:
        """Act on one message."""
        match message:
            case GenerateRequest():
                self._receive(message)
            case CancelRequest():
                self._waiting = deque(
                    entry for entry in self._waiting if entry[1].request_id != message.request_id
                )
            case CheckAdapter():
                error = "an encoder takes no adapters"
                self._outbox.send(AdapterChecked(message.adapter.digest, error))
            case Shutdown():
                self.running = False
            case MalformedMessage():
                logger.error("a message could not be read: %s", message.reason)
            case _:
                pass

    def turn(self) -> None:
        """Run one step and report what became of it."""
        taken = self._take()
        deltas: list[TokenDelta] = []
        if taken:
            try:
                deltas = self._encode(taken)
            except torch.AcceleratorError:
                raise
            except Exception as error:
                logger.exception("a step failed")
                for _, request in taken:
                    message = f"The engine could not run this request ({type(error).__name__})."
                    self._outbox.fail(request.request_id, "engine_error", message)
        self._outbox.flush(deltas, EngineStats(waiting=len(self._waiting), steps=self._steps))

    def _receive(self, request: GenerateRequest) -> None:
        name = request.request_id
        if len(self._waiting) >= self._config.max_waiting:
            self._outbox.fail(name, "queue_full", "The queue is full; try again in a moment.")
            return
        longest = self._model.config.max_position_embeddings
        if request.pooling is None or request.adapter or len(request.prompt) > longest:
            self._outbox.fail(name, "invalid_request", "An encoder makes embeddings alone.")
            return
        if (request.pooling == "score") is not (self._head is not None):
            message = "A cross-encoder scores pairs of texts, which others do not."
            self._outbox.fail(name, "invalid_request", message)
            return
        try:
            check_token_ids(request, self._model.config.vocab_size)
        except HaganeError as error:
            self._outbox.fail(name, "invalid_request", str(error))
            return
        self._waiting.append((time.monotonic(), request))

    def _take(self) -> list[tuple[float, GenerateRequest]]:
        """The next requests, as many as fit a step, those of idle priority last and by themselves.

        Those whose deadline has passed are failed.
        """
        now, tokens = time.monotonic(), 0
        self._waiting = deque(sorted(self._waiting, key=_is_idle))
        taken: list[tuple[float, GenerateRequest]] = []
        while self._waiting:
            _, request = self._waiting[0]
            tokens += len(request.prompt)
            full = tokens > self._config.max_batch_tokens
            if taken and (full or _is_idle(self._waiting[0]) != _is_idle(taken[0])):
                break
            entry = self._waiting.popleft()
            if request.deadline is not None and request.deadline < now:
                message = "The request's deadline has passed."
                self._outbox.fail(request.request_id, "deadline_exceeded", message)
                tokens -= len(request.prompt)
            else:
                taken.append(entry)
        return taken

    @torch.inference_mode()
    def _encode(self, taken: list[tuple[float, GenerateRequest]]) -> list[TokenDelta]:
        self._steps += 1
        started = time.monotonic()
        lengths = [len(request.prompt) for _, request in taken]
        ids = torch.tensor([token for _, request in taken for token in request.prompt])
        types = torch.cat([_types(request) for _, request in taken])
        hidden = self._model(ids.to(self._device), lengths, types.to(self._device))
        pairs = zip(hidden.split(lengths), taken, strict=True)
        if self._head is None:
            found = [_pool(states.float(), request) for states, (_, request) in pairs]
        else:
            found = list(self._head(torch.stack([states[0] for states, _ in pairs])).float())
        return [
            TokenDelta(
                request_id=request.request_id,
                index=0,
                tokens=(),
                finish_reason="stop",
                queue_seconds=started - arrived,
                embedding=as_bytes(vector),
            )
            for (arrived, request), vector in zip(taken, found, strict=True)
        ]


def _is_idle(entry: tuple[float, GenerateRequest]) -> bool:
    return entry[1].priority >= IDLE_PRIORITY


def _types(request: GenerateRequest) -> Tensor:
    """int64 [tokens]: 1 for those of the second of two texts."""
    types = torch.zeros(len(request.prompt), dtype=torch.int64)
    if request.second is not None:
        types[request.second :] = 1
    return types


def _pool(states: Tensor, request: GenerateRequest) -> Tensor:
    if request.pooling == "mean":
        return states.mean(0)
    return states[0] if request.pooling == "first" else states[-1]
