"""Pretraining: text in, a model that predicts the next token out.

1. `prepare` trains the tokenizer and writes every corpus as token files, once.
2. `PretrainModel` has the weights and optimizers, restored from the last checkpoint.
3. `PretrainRun.train` updates, reports, validates and saves.
4. `export` writes the model directory.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from hagane.system.errors import TrainingInterrupted
from hagane.system.files import write_text
from hagane.training.parallel.group import Group
from hagane.training.parallel.ranks import Work, leads, together
from hagane.training.pretrain.config import PretrainConfig
from hagane.training.pretrain.export import export
from hagane.training.pretrain.model import PretrainModel, make_model, sample
from hagane.training.pretrain.optimizer import schedule
from hagane.training.pretrain.preparation import Prepared, prepare
from hagane.training.pretrain.shards import MixedRows, PackedRows
from hagane.training.pretrain.utilisation import Utilisation
from hagane.training.pretrain.vocabulary import token_bytes
from hagane.training.report.curve import Curve
from hagane.training.report.listener import PretrainListener, PretrainReport, PretrainResult

_VALIDATED_AT_ONCE = 8


def pretrain(config: PretrainConfig, listener: PretrainListener) -> PretrainResult:
    """Start or resume the run that `config` describes; in parallel under `torchrun`, too.

    Writes a Hugging Face directory to `config.output`, with the loss curve, and the run's state in
    `state/`. Raises TrainingInterrupted when the listener asked to stop; the next call resumes, and
    its result is the same bit for bit. Raises RankLostError when one of its processes is gone.
    """
    state_dir = config.output / "state"
    state_dir.mkdir(parents=True, exist_ok=True)
    if leads():
        prepare(config, state_dir)
    work = Work("pretrain", config.model_dump_json(), str(config.output))
    with together(config.data_parallel, config.device, work) as group:
        return pretrain_rank(config, listener, group)


def pretrain_rank(
    config: PretrainConfig, listener: PretrainListener, group: Group
) -> PretrainResult:
    """The part of `pretrain` that each rank of `group` runs, once the first has prepared."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(group.threads(config.threads))
    run = PretrainRun.load(config, config.output / "state", group.device(config.device), group)
    base = run.base_scores()
    run.train(listener)
    if group.leads:
        export(run.model.transformer, run.data.tokenizer, config.output)
    return PretrainResult(config.output, run.validate(), base)


@dataclass(frozen=True, eq=False)
class PretrainRun:
    """A model, its data, and the files that a restart resumes from."""

    config: PretrainConfig
    state_dir: Path
    data: Prepared
    rows: MixedRows
    model: PretrainModel
    first: int
    utilisation: Utilisation | None

    @classmethod
    def load(
        cls, config: PretrainConfig, state_dir: Path, device: torch.device, group: Group
    ) -> PretrainRun:
        data = Prepared.load(config, state_dir)
        group.share(config.batch_rows)
        transformer = make_model(config, data.tokenizer).to(device)
        model = PretrainModel.of(transformer, config, group)
        first = model.load(state_dir / "checkpoint.pt")
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        used = Utilisation.of(transformer, config.sequence_length, gpu, group.size)
        return cls(config, state_dir, data, data.rows(config), model, first, used)

    def base_scores(self) -> dict[str, float] | None:
        """Scores of the model to start from, before any step; None for a new model."""
        file = self.state_dir / "base.json"
        if self.config.start_from is None or (self.first and not file.is_file()):
            return None
        if self.first:
            kept: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
            return kept
        scores = self.validate()
        if self.model.group.leads:
            write_text(file, json.dumps(scores))
        return scores

    def train(self, listener: PretrainListener) -> None:
        """Run all remaining steps. Raises TrainingInterrupted when the listener asks to stop."""
        config, group = self.config, self.model.group
        curve = Curve(config.output, self.first)
        if group.leads:
            curve.begin()
        started = time.monotonic()
        for step in range(self.first, config.steps):
            loss = self.model.step(self.rows.batch(step, config.batch_rows), step)
            done = step + 1
            stopping = group.any(listener.interrupted()) and done < config.steps
            saving = stopping or done % config.checkpoint_every == 0 or done == config.steps
            if not (saving or done % config.log_every == 0):
                continue
            if group.leads:
                scores = self.validate() if saving else None
                report = self._report(done, float(loss), time.monotonic() - started, scores)
                # Before the checkpoint: steps in the curve but not in the checkpoint are dropped at
                # the next start; steps in the checkpoint but not in the curve would be missing.
                curve.add(report)
                if saving:
                    self.model.save(self.state_dir / "checkpoint.pt", done)
                listener.progress(report)
            if stopping:
                group.wait()
                raise TrainingInterrupted(f"stopped after step {done}, as requested")
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
            samples=tuple(sample(self.model, self.data.tokenizer, p) for p in samples),
            utilisation=used,
        )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Bits per UTF-8 byte of every corpus' held-out text, comparable across tokenizers."""
        sizes = token_bytes(self.data.tokenizer)
        transformer = self.model.transformer
        device = next(transformer.parameters()).device
        scores = {}
        for label, path in self.data.held_out.items():
            length = min(self.config.sequence_length, path.stat().st_size // 2 - 1)
            rows = PackedRows(path, length, 0).first(self.config.validation_rows)
            losses = [
                self.model.loss.each(transformer, part.to(device))
                for part in torch.from_numpy(rows).split(_VALIDATED_AT_ONCE)
            ]
            nats = torch.cat(losses).double().sum().item()
            scores[label] = round(nats / math.log(2) / int(sizes[rows[:, 1:]].sum()), 4)
        return scores
