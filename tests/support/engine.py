"""Shared by the adapter tests: random adapters, models they make, an engine in a thread."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
from hagane.engine.loop import Engine
from hagane.lora.config import EMBEDDING, HEAD, TARGETS, AdapterConfig, adapter_digest
from hagane.lora.files import load_adapter, save_adapter
from hagane.models.families import read_config_file
from hagane.models.spec import linear_shapes
from hagane.pool.channel import EngineChannel, encode
from hagane.pool.messages import (
    AdapterChecked,
    AdapterRef,
    EngineConfig,
    EngineReady,
    EngineStats,
    FromEngine,
    GenerateRequest,
    Heartbeat,
    Loading,
    LogLines,
    RequestFailed,
    SamplingParams,
    Shutdown,
    StepOutput,
    TokenDelta,
)
from transformers import AutoModelForCausalLM

_DEADLINE_SECONDS = 60


def make_adapter(
    directory: Path,
    model: Path,
    seed: int,
    *,
    rank: int = 4,
    targets: tuple[str, ...] = TARGETS,
    dora: bool = False,
    tokens: tuple[int, ...] = (),
) -> AdapterRef:
    """A random PEFT directory, strong enough to change what the model says.

    It has new rows of `tokens`.
    """
    shapes = read_config_file(model)
    generator = torch.Generator().manual_seed(seed)
    factors = {
        module: (
            torch.randn(rank, width, generator=generator) / width**0.5,
            torch.randn(out, rank, generator=generator) / rank**0.5,
            *((1 + torch.rand(out, generator=generator),) if dora else ()),
        )
        for module, (out, width) in linear_shapes(shapes).items()
        if module.endswith(targets)
    }
    names = (EMBEDDING, HEAD) if tokens else ()
    rows = {
        name: torch.randn(len(tokens), shapes.hidden_size, generator=generator) for name in names
    }
    config = AdapterConfig(
        rank=rank, alpha=float(rank), target_modules=targets, dora=dora,
        token_ids=dict.fromkeys(names, tokens),
    )  # fmt: skip
    save_adapter(directory, config, factors, rows)
    return AdapterRef(directory.name, str(directory), adapter_digest(directory))


def make_draft(directory: Path, model: Path, noise: float = 0.05) -> Path:
    """A model of the same vocabulary that thinks nearly alike: its weights, changed a little."""
    drafting = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    for weight in drafting.parameters():
        weight.data += noise * weight.std() * torch.randn(weight.shape, generator=generator)
    drafting.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, directory / name)
    return directory


def merged(model: Path, adapter: AdapterRef | None) -> torch.nn.Module:
    """The adapter's changes added to the weights of transformers' model."""
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    if adapter is not None:
        loaded = load_adapter(Path(adapter.directory), read_config_file(model))
        for module, change in loaded.changes.items():
            weight = reference.model.get_submodule(module).weight
            weight.data += change.scale * (change.b @ change.a)
            if change.magnitude is not None:
                lengths = weight.data.norm(dim=1)
                weight.data *= (change.magnitude / lengths)[:, None]
        for module, rows in loaded.tokens.items():
            owner = reference.lm_head if module == HEAD else reference.model.embed_tokens
            owner.weight.data[list(rows.ids)] = rows.values
    return reference


@torch.inference_mode()
def logprobs_of(model: torch.nn.Module, prompt: tuple[int, ...], tokens: list[int]) -> list[float]:
    """The model's own log-probabilities of `tokens` after `prompt`."""
    ids = torch.tensor([[*prompt, *tokens]])
    scores = model(ids).logits[0].float().log_softmax(-1)
    rows = range(len(prompt) - 1, ids.shape[1] - 1)
    return [scores[row, token].item() for row, token in zip(rows, tokens, strict=True)]


def config(model: Path, **changes) -> EngineConfig:
    plain = EngineConfig(
        model=str(model), device="cpu", dtype="float32", quantize="none", group_size=64,
        block_size=16, context_length=128, kv_cache_memory=1 << 22, kv_cache_dtype="auto",
        max_batch_tokens=32, max_sequences=8, max_waiting=16, prefix_caching=True, threads=1,
        adapter_memory=1 << 30,
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


@dataclass
class Answer:
    """The messages for one request."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    cached: int = 0
    finished: bool = False
    error: RequestFailed | None = None


class RunningEngine:
    """The engine's own loop in a thread of this process; use as a context manager.

    `parts` are the engine's keyword arguments.
    """

    def __init__(self, settings: EngineConfig, **parts) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self.answers: dict[str, Answer] = defaultdict(Answer)
        self.checked: dict[str, str | None] = {}
        self.stats = EngineStats()
        self.engine = Engine(settings, EngineChannel(theirs), **parts)
        self._thread = threading.Thread(target=self.engine.run)
        self._thread.start()

    def __enter__(self) -> RunningEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.send(Shutdown())
        self._thread.join(_DEADLINE_SECONDS)
        assert not self._thread.is_alive()
        self.engine.scheduler.check()
        drafting = self.engine.proposer and self.engine.proposer.drafting
        if drafting is not None:
            drafting.model.check()
            assert drafting.model.kv.used == 0 or self.engine.scheduler.has_work

    def send(self, message: msgspec.Struct) -> None:
        self._socket.sendall(encode(message))

    def ask(
        self,
        name: str,
        prompt: tuple[int, ...],
        adapter: AdapterRef | None = None,
        tokens: int = 12,
        **fields,
    ) -> None:
        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, logprobs=0)
        self.send(
            GenerateRequest(
                request_id=name, prompt=prompt, sampling=sampling, adapter=adapter, **fields
            )
        )

    def wait(self, *names: str) -> list[Answer]:
        """The answers to `names`, whole or failed."""
        self.wait_for(lambda: all(self.answers[n].finished or self.answers[n].error for n in names))
        return [self.answers[name] for name in names]

    def wait_for(self, condition) -> None:
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "the engine does not answer"
            assert self._thread.is_alive(), "the engine died"
            self._receive()

    def _receive(self) -> None:
        self._socket.settimeout(1.0)
        try:
            header = self._exactly(4)
        except TimeoutError:
            return
        message = self._decoder.decode(self._exactly(int.from_bytes(header, "little")))
        if isinstance(message, AdapterChecked):
            self.checked[message.digest] = message.error
        if not isinstance(message, StepOutput):
            known = AdapterChecked | EngineReady | Heartbeat | Loading | LogLines
            assert isinstance(message, known)
            return
        self.stats = message.stats
        for delta in message.deltas:
            self._take(delta)
        for failure in message.failures:
            self.answers[failure.request_id].error = failure

    def _take(self, delta: TokenDelta) -> None:
        answer = self.answers[delta.request_id]
        answer.tokens += delta.tokens
        answer.logprobs += [entry.logprob for entry in delta.logprobs or ()]
        answer.cached = answer.cached or delta.cached_tokens
        answer.finished = delta.finish_reason is not None

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += self._socket.recv(count - len(data))
        return data
