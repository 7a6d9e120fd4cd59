"""Pretraining: text in, a model that predicts the next token out."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tokenizers
import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from app.errors import ConfigurationError
from app.training.config import PretrainConfig, Shape
from app.training.corpus import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    TURN_END,
    PackedRows,
    mixture,
    token_bytes,
    train_tokenizer,
    write_tokens,
)
from app.training.optimizer import make_optimizers, schedule, set_learning_rate
from app.transformer.attention import PackedCausal
from app.transformer.config import ModelConfig
from app.transformer.model import Transformer
from app.transformer.weights import load_model, save_model

logger = logging.getLogger(__name__)

_LOSS_ROWS = 2048
_SAMPLE_TOKENS = 48
Loss = Callable[[Transformer, np.ndarray, str], Tensor]


def pretrain(config: PretrainConfig) -> dict[str, float]:
    """Run, or go on with, the training that `config` describes.

    Writes a Hugging Face directory to `config.output`, with the run's state in `state/` in it.
    Returns the bits per byte of held-out text, by corpus.
    """
    torch.manual_seed(config.seed)
    state_dir = config.output / "state"
    state_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = prepare_data(config, state_dir)
    rows = PackedRows(state_dir / "tokens.bin", config.sequence_length, config.seed)
    model = make_model(config, tokenizer)
    optimizers = make_optimizers(model, config)
    checkpoint = state_dir / "checkpoint.pt"
    first = load_checkpoint(checkpoint, model, optimizers)
    loss_of = _compiled(batch_loss) if config.compile else batch_loss

    with Progress() as progress:
        bar = progress.add_task("pretraining", total=config.steps, completed=first)
        started = time.monotonic()
        for step in range(first, config.steps):
            set_learning_rate(optimizers, schedule(step, config))
            loss = train_step(
                model, optimizers, rows.batch(step, config.batch_rows), config, loss_of
            )
            progress.advance(bar)
            if (step + 1) % config.log_every == 0:
                done = (step + 1 - first) * config.batch_rows * config.sequence_length
                entry = {
                    "step": step + 1,
                    "loss": round(loss, 4),
                    "tokens_per_second": round(done / (time.monotonic() - started)),
                }
                _log(state_dir / "log.jsonl", entry)
                progress.console.print(
                    "step {step} loss {loss} {tokens_per_second} tok/s".format(**entry)
                )
            if (step + 1) % config.checkpoint_every == 0:
                save_checkpoint(checkpoint, model, optimizers, step + 1)
                scores = validate(model, tokenizer, config, state_dir)
                _log(state_dir / "log.jsonl", {"step": step + 1, "bits_per_byte": scores})
                progress.console.print(f"held out, bits per byte: {scores}")
                for prompt in config.samples:
                    progress.console.print(f"> {sample(model, tokenizer, prompt)!r}", markup=False)
    save_checkpoint(checkpoint, model, optimizers, config.steps)
    export(model, tokenizer, config.output)
    return validate(model, tokenizer, config, state_dir)


def train_step(
    model: Transformer,
    optimizers: list[torch.optim.Optimizer],
    rows: np.ndarray,
    config: PretrainConfig,
    loss_of: Loss,
) -> float:
    """One update from int64 rows [batch_rows, length + 1]; returns the loss in nats per token."""
    size = config.micro_rows or config.batch_rows
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    total = 0.0
    for part in parts:
        loss = loss_of(model, part, config.dtype) / len(parts)
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total


def _compiled(loss_of: Loss) -> Loss:
    """Fusing the element-wise parts more than doubles the rate; it needs a C++ compiler."""
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        logger.warning("no C++ compiler found: training runs uncompiled, at about half the rate")
        return loss_of
    compiled: Loss = torch.compile(loss_of, dynamic=False)
    return compiled


def prepare_data(config: PretrainConfig, state_dir: Path) -> tokenizers.Tokenizer:
    """The tokenizer, and the token files beside it, made once and then reused."""
    tokenizer_file, tokens_file = state_dir / "tokenizer.json", state_dir / "tokens.bin"
    if tokenizer_file.is_file() and tokens_file.is_file():
        return tokenizers.Tokenizer.from_file(str(tokenizer_file))
    texts = mixture(config.corpora, config.held_out, config.seed)
    given = config.start_from / "tokenizer.json" if config.start_from else config.tokenizer
    if given is None:
        tokenizer = train_tokenizer(texts.training, config.vocab_size)
    else:
        tokenizer = _given_tokenizer(given)
    for label, held_out in texts.held_out.items():
        write_tokens(held_out, tokenizer, state_dir / f"held-out-{label}.bin")
    write_tokens(texts.training, tokenizer, tokens_file)
    tokenizer.save(str(tokenizer_file))
    return tokenizer


def _given_tokenizer(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise ConfigurationError(f"tokenizer {path} does not exist")
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    missing = [t for t in (END_OF_TEXT, TURN_END) if tokenizer.token_to_id(t) is None]
    if missing or tokenizer.get_vocab_size() > 65536:
        raise ConfigurationError(
            f"tokenizer {path} needs the tokens {END_OF_TEXT} and {TURN_END} and at most 65536 ids"
        )
    return tokenizer


def make_model(config: PretrainConfig, tokenizer: tokenizers.Tokenizer) -> Transformer:
    """A new model of the shape asked for, or the one to start from; float32.

    Raises ConfigurationError if the rows do not fit into its context.
    """
    if config.start_from is not None:
        model, _ = load_model(
            config.start_from, device="cpu", dtype=torch.float32, quantization=None
        )
    elif config.model is not None:
        model = Transformer(model_config(config.model, tokenizer))
        model.init_weights(torch.Generator().manual_seed(config.seed))
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


def batch_loss(model: Transformer, rows: np.ndarray, dtype: str) -> Tensor:
    """Mean cross-entropy in nats per token of int64 rows [rows, length + 1]."""
    return token_losses(model, rows, dtype).mean()


def token_losses(model: Transformer, rows: np.ndarray, dtype: str) -> Tensor:
    """Cross-entropy in nats, float32 [rows * length], of int64 rows [rows, length + 1]."""
    batch = torch.from_numpy(rows)
    inputs, targets = batch[:, :-1].flatten(), batch[:, 1:].flatten()
    context = PackedCausal(rows=len(batch), length=batch.shape[1] - 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        hidden = model(inputs, context)
        losses = [
            F.cross_entropy(model.logits(part), wanted, reduction="none")
            for part, wanted in zip(
                hidden.split(_LOSS_ROWS), targets.split(_LOSS_ROWS), strict=True
            )
        ]
    return torch.cat(losses)


@torch.no_grad()
def validate(
    model: Transformer, tokenizer: tokenizers.Tokenizer, config: PretrainConfig, state_dir: Path
) -> dict[str, float]:
    """Bits per UTF-8 byte of every corpus' held-out text: comparable whatever the tokenizer."""
    sizes = token_bytes(tokenizer)
    scores = {}
    for path in sorted(state_dir.glob("held-out-*.bin")):
        tokens = np.fromfile(path, dtype="<u2")
        length = min(config.sequence_length, len(tokens) - 1)
        rows = PackedRows(path, length, config.seed).first(config.validation_rows)
        losses = [
            token_losses(model, rows[i : i + 8], config.dtype) for i in range(0, len(rows), 8)
        ]
        nats = torch.cat(losses).double().sum().item()
        label = path.stem.removeprefix("held-out-")
        scores[label] = round(nats / math.log(2) / int(sizes[rows[:, 1:]].sum()), 4)
    return scores


@torch.no_grad()
def sample(model: Transformer, tokenizer: tokenizers.Tokenizer, prompt: str) -> str:
    """`prompt` with its most likely continuation, up to the end of the turn."""
    ids = tokenizer.encode(prompt).ids
    start = len(ids)
    while len(ids) - start < _SAMPLE_TOKENS and ids[-1] not in model.config.eos_token_ids:
        hidden = model(torch.tensor(ids), PackedCausal(rows=1, length=len(ids)))
        ids.append(int(model.logits(hidden[-1:]).argmax()))
    text: str = tokenizer.decode(ids[start:])
    return prompt + text


def _log(path: Path, entry: Mapping[str, object]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def save_checkpoint(
    path: Path, model: Transformer, optimizers: list[torch.optim.Optimizer], step: int
) -> None:
    """Atomically: a crash while writing leaves the checkpoint before."""
    partial = path.with_suffix(".partial")
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
    }
    torch.save(state, partial)
    partial.replace(path)


def load_checkpoint(path: Path, model: Transformer, optimizers: list[torch.optim.Optimizer]) -> int:
    """Restore the last checkpoint; returns the step to go on with, 0 without one."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


def export(model: Transformer, tokenizer: tokenizers.Tokenizer, directory: Path) -> None:
    """Write the directory that `hagane serve` and transformers load; weights in bfloat16."""
    save_model(model, directory, dtype=torch.bfloat16)
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "model_max_length": model.config.max_position_embeddings,
        "chat_template": CHAT_TEMPLATE,
    }
    sampling = {
        "eos_token_id": list(model.config.eos_token_ids),
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
    }
    for name, content in (("tokenizer_config", special), ("generation_config", sampling)):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (directory / f"{name}.json").write_text(text, encoding="utf-8")
