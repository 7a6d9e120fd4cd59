"""The model that pretraining trains: its optimizers, one update, and its checkpoint."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
from torch import Tensor

from hagane.data.documents import END_OF_TEXT, TURN_END
from hagane.kernels import cpu
from hagane.kernels.cpu import training
from hagane.kernels.cpu.pretraining import Pretraining
from hagane.models.config import ModelConfig
from hagane.models.decoder import Transformer, use_operations
from hagane.models.families import read_config
from hagane.system.errors import ConfigurationError
from hagane.system.files import commit
from hagane.training.parallel.group import ALONE, Group
from hagane.training.pretrain.config import PretrainConfig, Shape
from hagane.training.pretrain.head_loss import CpuLoss, HeadLoss, TorchLoss
from hagane.training.pretrain.optimizer import make_optimizers, schedule, set_learning_rate
from hagane.weights.load import load_model

logger = logging.getLogger(__name__)

_SAMPLE_TOKENS = 48
# Rows of so many tokens go forward and back together on the CPU: their activations fit its caches.
_MICRO_TOKENS = 2048


@dataclass(frozen=True, eq=False)
class PretrainModel:
    """A model with its optimizers. `mean_loss` is `loss.mean`, compiled where that is faster."""

    transformer: Transformer
    config: PretrainConfig
    optimizers: list[torch.optim.Optimizer]
    loss: HeadLoss
    mean_loss: Callable[[Transformer, Tensor], Tensor]
    micro_rows: int
    group: Group = ALONE

    @classmethod
    def of(
        cls, transformer: Transformer, config: PretrainConfig, group: Group = ALONE
    ) -> PretrainModel:
        """Set up training. On the CPU, `transformer` gets Hagane's kernels where they are built."""
        dtype: torch.dtype = getattr(torch, config.dtype)
        micro_rows = config.micro_rows or config.batch_rows
        optimizers = make_optimizers(transformer, config)
        native = training.usable(next(transformer.parameters()).device, dtype)
        if native and transformer.config.plain:
            operations = Pretraining(dtype)
            cpu.start_beside_torch(torch.get_num_threads())
            use_operations(transformer, operations)
            ours = CpuLoss(operations)
            micro_rows = min(micro_rows, max(1, _MICRO_TOKENS // config.sequence_length))
            return cls(transformer, config, optimizers, ours, ours.mean, micro_rows, group)
        loss = TorchLoss(dtype)
        mean = _compiled(loss.mean) if config.compile else loss.mean
        return cls(transformer, config, optimizers, loss, mean, micro_rows, group)

    def step(self, rows: np.ndarray, step: int) -> Tensor:
        """Update from int64 rows [batch_rows, length + 1]; returns the mean loss in nats."""
        set_learning_rate(self.optimizers, schedule(step, self.config))
        device = next(self.transformer.parameters()).device
        own = torch.from_numpy(rows[self.group.share(len(rows))]).to(device)
        parts = own.split(self.micro_rows)
        total = torch.zeros((), device=device)
        for part in parts:
            loss = self.mean_loss(self.transformer, part) * (len(part) / len(rows))
            loss.backward()
            total += loss.detach()
        parameters = list(self.transformer.parameters())
        self.group.sum_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return self.group.add(total)

    def save(self, path: Path, step: int) -> None:
        """Write a checkpoint atomically: a crash on the way leaves the previous one."""
        partial = path.with_suffix(".partial")
        state = {
            "model": self.transformer.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": step,
        }
        with partial.open("wb") as file:
            torch.save(state, file)
        commit(partial, path)

    def load(self, path: Path) -> int:
        """Restore the last checkpoint; returns the step to continue with, 0 without one."""
        if not path.is_file():
            return 0
        device = next(self.transformer.parameters()).device
        state = torch.load(path, weights_only=True, map_location=device)
        self.transformer.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return int(state["step"])


def _compiled(
    loss_of: Callable[[Transformer, Tensor], Tensor],
) -> Callable[[Transformer, Tensor], Tensor]:
    """Compile the loss: fusing its element-wise parts more than doubles the rate."""
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        logger.warning("no C++ compiler found: training runs uncompiled, at about half the rate")
        return loss_of
    compiled: Callable[[Transformer, Tensor], Tensor] = torch.compile(loss_of, dynamic=False)
    return compiled


def make_model(config: PretrainConfig, tokenizer: tokenizers.Tokenizer) -> Transformer:
    """Make a new model of the configured shape, or load the one to start from; float32.

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
    """The configuration of a new model; its vocabulary size is the trained tokenizer's."""
    return read_config(
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
def sample(model: PretrainModel, tokenizer: tokenizers.Tokenizer, prompt: str) -> str:
    """Continue `prompt` greedily, up to the end of the turn; returns both."""
    transformer = model.transformer
    device = next(transformer.parameters()).device
    ids = tokenizer.encode(prompt).ids
    start = len(ids)
    while len(ids) - start < _SAMPLE_TOKENS and ids[-1] not in transformer.config.eos_token_ids:
        logits = model.loss.next_logits(transformer, torch.tensor(ids, device=device))
        ids.append(int(logits.argmax()))
    text: str = tokenizer.decode(ids[start:])
    return prompt + text
