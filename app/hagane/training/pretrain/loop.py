"""Pretraining: text in, a model that predicts the next token out."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
from torch import Tensor

from hagane.data.documents import END_OF_TEXT, TURN_END
from hagane.kernels import Pretraining, cpu, training
from hagane.models.config import ModelConfig
from hagane.models.decoder import Transformer, use_operations
from hagane.system.errors import ConfigurationError, TrainingInterrupted
from hagane.system.files import commit, write_text
from hagane.training.pretrain.config import PretrainConfig, Shape
from hagane.training.pretrain.export import export
from hagane.training.pretrain.group import ALONE, Group, joined, own_device
from hagane.training.pretrain.head_loss import HeadLoss, NativeLoss, TorchLoss
from hagane.training.pretrain.optimizer import make_optimizers, schedule, set_learning_rate
from hagane.training.pretrain.preparation import Prepared, prepare
from hagane.training.pretrain.shards import MixedRows, PackedRows
from hagane.training.pretrain.utilisation import Utilisation
from hagane.training.pretrain.vocabulary import token_bytes
from hagane.training.report.curve import Curve
from hagane.training.report.listener import PretrainListener, PretrainReport, PretrainResult
from hagane.weights.load import load_model

logger = logging.getLogger(__name__)

_SAMPLE_TOKENS = 48
_VALIDATED_AT_ONCE = 8
# Rows that are learnt from together on the CPU: what they leave behind still fits into its caches.
_MICRO_TOKENS = 2048


def pretrain(config: PretrainConfig, listener: PretrainListener) -> PretrainResult:
    """Run, or go on with, the training that `config` describes; under `torchrun`, in parallel.

    Writes a Hugging Face directory to `config.output`, with the run's state in `state/` and its
    loss curve in it. Raises TrainingInterrupted when the listener asked for an end; the next call
    goes on bit for bit.
    """
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    device = own_device(config.device)
    state_dir = config.output / "state"
    state_dir.mkdir(parents=True, exist_ok=True)
    with joined(device.type) as group:
        if group.leads:
            prepare(config, state_dir)
        group.wait()
        run = Run.load(config, state_dir, device, group)
        base = run.base_scores()
        run.learn(listener)
        if group.leads:
            export(run.learner.model, run.data.tokenizer, config.output)
        return PretrainResult(config.output, run.validate(), base)


@dataclass(frozen=True, eq=False)
class Learner:
    """A model and what changes it. `mean_loss` is `loss.mean`, compiled where that pays."""

    model: Transformer
    config: PretrainConfig
    optimizers: list[torch.optim.Optimizer]
    loss: HeadLoss
    mean_loss: Callable[[Transformer, Tensor], Tensor]
    micro_rows: int
    group: Group = ALONE

    @classmethod
    def of(cls, model: Transformer, config: PretrainConfig, group: Group = ALONE) -> Learner:
        """On the CPU through Hagane's kernels where they were built; `model` is given them."""
        dtype: torch.dtype = getattr(torch, config.dtype)
        micro_rows = config.micro_rows or config.batch_rows
        optimizers = make_optimizers(model, config)
        if training.usable(next(model.parameters()).device, dtype):
            operations = Pretraining(dtype)
            cpu.start_beside_torch(torch.get_num_threads())
            use_operations(model, operations)
            ours = NativeLoss(operations)
            micro_rows = min(micro_rows, max(1, _MICRO_TOKENS // config.sequence_length))
            return cls(model, config, optimizers, ours, ours.mean, micro_rows, group)
        loss = TorchLoss(dtype)
        mean = _compiled(loss.mean) if config.compile else loss.mean
        return cls(model, config, optimizers, loss, mean, micro_rows, group)

    def step(self, rows: np.ndarray, step: int) -> Tensor:
        """One update from int64 rows [batch_rows, length + 1]; the mean loss, in nats per token."""
        set_learning_rate(self.optimizers, schedule(step, self.config))
        device = next(self.model.parameters()).device
        own = torch.from_numpy(rows[self.group.share(len(rows))]).to(device)
        parts = own.split(self.micro_rows)
        total = torch.zeros((), device=device)
        for part in parts:
            loss = self.mean_loss(self.model, part) * (len(part) / len(own))
            loss.backward()
            total += loss.detach()
        parameters = list(self.model.parameters())
        self.group.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return self.group.average(total)

    def save(self, path: Path, step: int) -> None:
        """Atomically: a crash while writing leaves the checkpoint before."""
        partial = path.with_suffix(".partial")
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": step,
        }
        with partial.open("wb") as file:
            torch.save(state, file)
        commit(partial, path)

    def load(self, path: Path) -> int:
        """Restore the last checkpoint; returns the step to go on with, 0 without one."""
        if not path.is_file():
            return 0
        device = next(self.model.parameters()).device
        state = torch.load(path, weights_only=True, map_location=device)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return int(state["step"])


@dataclass(frozen=True, eq=False)
class Run:
    """A learner, its data, and the files between them and the next start."""

    config: PretrainConfig
    state_dir: Path
    data: Prepared
    rows: MixedRows
    learner: Learner
    first: int
    utilisation: Utilisation | None

    @classmethod
    def load(
        cls, config: PretrainConfig, state_dir: Path, device: torch.device, group: Group
    ) -> Run:
        data = Prepared.load(config, state_dir)
        group.share(config.batch_rows)
        learner = Learner.of(make_model(config, data.tokenizer).to(device), config, group)
        first = learner.load(state_dir / "checkpoint.pt")
        used = Utilisation.of(learner.model, config.sequence_length, device, group.size)
        return cls(config, state_dir, data, data.rows(config), learner, first, used)

    def base_scores(self) -> dict[str, float] | None:
        """Those of the model to go on from, before it learns anything; None for a new model."""
        file = self.state_dir / "base.json"
        if self.config.start_from is None or (self.first and not file.is_file()):
            return None
        if self.first:
            kept: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
            return kept
        scores = self.validate()
        if self.learner.group.leads:
            write_text(file, json.dumps(scores))
        return scores

    def learn(self, listener: PretrainListener) -> None:
        config, group = self.config, self.learner.group
        curve = Curve(config.output, self.first)
        if group.leads:
            curve.begin()
        started = time.monotonic()
        for step in range(self.first, config.steps):
            loss = self.learner.step(self.rows.batch(step, config.batch_rows), step)
            done = step + 1
            stopping = group.any(listener.interrupted()) and done < config.steps
            saving = stopping or done % config.checkpoint_every == 0 or done == config.steps
            if not (saving or done % config.log_every == 0):
                continue
            scores = self.validate() if saving else None
            if group.leads:
                report = self._report(done, float(loss), time.monotonic() - started, scores)
                # Before the checkpoint: what is in the curve but not learnt is dropped at the next
                # start, what is learnt but not in the curve would be missing.
                curve.add(report)
                if saving:
                    self.learner.save(self.state_dir / "checkpoint.pt", done)
                listener.progress(report)
            if stopping:
                group.wait()
                raise TrainingInterrupted(f"stopped after step {done}, as asked")
        if group.leads:
            curve.draw()
        group.wait()

    def _report(
        self, step: int, loss: float, seconds: float, scores: dict[str, float] | None
    ) -> PretrainReport:
        config = self.config
        tokens = config.batch_rows * config.sequence_length
        rate = (step - self.first) * tokens / seconds
        samples = config.samples if scores is not None else []
        used = None if self.utilisation is None else self.utilisation.at(rate)
        return PretrainReport(
            step=step,
            steps=config.steps,
            loss=loss,
            learning_rate=config.learning_rate * schedule(step - 1, config),
            tokens_per_second=rate,
            trained_tokens=step * tokens,
            eta_seconds=(config.steps - step) * tokens / rate,
            bits_per_byte=scores,
            samples=tuple(sample(self.learner, self.data.tokenizer, p) for p in samples),
            utilisation=used,
        )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Bits per UTF-8 byte of every corpus' held-out text: comparable whatever the tokenizer."""
        sizes = token_bytes(self.data.tokenizer)
        model = self.learner.model
        device = next(model.parameters()).device
        scores = {}
        for label, path in self.data.held_out.items():
            length = min(self.config.sequence_length, path.stat().st_size // 2 - 1)
            rows = PackedRows(path, length, 0).first(self.config.validation_rows)
            losses = [
                self.learner.loss.each(model, part.to(device))
                for part in torch.from_numpy(rows).split(_VALIDATED_AT_ONCE)
            ]
            nats = torch.cat(losses).double().sum().item()
            scores[label] = round(nats / math.log(2) / int(sizes[rows[:, 1:]].sum()), 4)
        return scores


def _compiled(
    loss_of: Callable[[Transformer, Tensor], Tensor],
) -> Callable[[Transformer, Tensor], Tensor]:
    """Fusing the element-wise parts more than doubles the rate; it needs a C++ compiler."""
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        logger.warning("no C++ compiler found: training runs uncompiled, at about half the rate")
        return loss_of
    compiled: Callable[[Transformer, Tensor], Tensor] = torch.compile(loss_of, dynamic=False)
    return compiled


def make_model(config: PretrainConfig, tokenizer: tokenizers.Tokenizer) -> Transformer:
    """A new model of the shape asked for, or the one to start from; float32.

    Raises ConfigurationError if the rows do not fit into its context.
    """
    shape = config.shape(tokenizer.get_vocab_size())
    if shape is not None:
        model = Transformer(model_config(shape, tokenizer))
        model.init_weights(torch.Generator().manual_seed(config.seed))
    elif config.start_from is not None:
        model, _ = load_model(
            config.start_from, device="cpu", dtype=torch.float32, quantization=None
        )
    if config.sequence_length > model.config.max_position_embeddings:
        raise ConfigurationError(
            f"sequence_length {config.sequence_length} exceeds the model's context length of "
            f"{model.config.max_position_embeddings}"
        )
    return model


def model_config(shape: Shape, tokenizer: tokenizers.Tokenizer) -> ModelConfig:
    """The model's config.json; its vocabulary is as large as the tokenizer turned out."""
    return ModelConfig.from_dict(
        {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "max_position_embeddings": shape.context_length,
            "tie_word_embeddings": True,
            "eos_token_id": [tokenizer.token_to_id(t) for t in (TURN_END, END_OF_TEXT)],
            "torch_dtype": "float32",
        }
    )


@torch.no_grad()
def sample(learner: Learner, tokenizer: tokenizers.Tokenizer, prompt: str) -> str:
    """`prompt` with its most likely continuation, up to the end of the turn."""
    model = learner.model
    device = next(model.parameters()).device
    ids = tokenizer.encode(prompt).ids
    start = len(ids)
    while len(ids) - start < _SAMPLE_TOKENS and ids[-1] not in model.config.eos_token_ids:
        logits = learner.loss.next_logits(model, torch.tensor(ids, device=device))
        ids.append(int(logits.argmax()))
    text: str = tokenizer.decode(ids[start:])
    return prompt + text
