"""Pretraining: text in, a model that predicts the next token out."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import tokenizers
import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from app.training.config import PretrainConfig
from app.training.corpus import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    TURN_END,
    PackedRows,
    mixture,
    train_tokenizer,
    write_tokens,
)
from app.transformer.attention import PackedCausal
from app.transformer.config import ModelConfig
from app.transformer.model import Transformer
from app.transformer.weights import save_model

_LOSS_ROWS = 2048


def pretrain(config: PretrainConfig) -> float:
    """Run, or go on with, the training that `config` describes; returns the validation loss.

    Writes a Hugging Face directory to `config.output`, with the run's state in `state/` in it.
    """
    torch.manual_seed(config.seed)
    state_dir = config.output / "state"
    state_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = prepare_data(config, state_dir)
    rows = PackedRows(
        state_dir / "tokens.bin", config.sequence_length, config.validation_rows, config.seed
    )
    model = Transformer(model_config(config, tokenizer))
    model.init_weights(torch.Generator().manual_seed(config.seed))
    optimizer = make_optimizer(model, config)
    checkpoint = state_dir / "checkpoint.pt"
    first = load_checkpoint(checkpoint, model, optimizer)

    with Progress() as progress:
        bar = progress.add_task("pretraining", total=config.steps, completed=first)
        started = time.monotonic()
        for step in range(first, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            loss = batch_loss(model, rows.batch(step, config.batch_rows), config.dtype)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
            optimizer.step()
            progress.advance(bar)
            if (step + 1) % config.log_every == 0:
                done = (step + 1 - first) * config.batch_rows * config.sequence_length
                rate = done / (time.monotonic() - started)
                progress.console.print(
                    f"step {step + 1}/{config.steps} loss {loss.item():.3f} {rate:.0f} tokens/s"
                )
            if (step + 1) % config.checkpoint_every == 0:
                save_checkpoint(checkpoint, model, optimizer, step + 1)
    save_checkpoint(checkpoint, model, optimizer, config.steps)
    validation = validation_loss(model, rows.validation(), config.dtype)
    export(model, tokenizer, config.output)
    return validation


def prepare_data(config: PretrainConfig, state_dir: Path) -> tokenizers.Tokenizer:
    """The tokenizer, and the token file beside it, made once and then reused."""
    tokenizer_file, tokens_file = state_dir / "tokenizer.json", state_dir / "tokens.bin"
    if tokenizer_file.is_file() and tokens_file.is_file():
        return tokenizers.Tokenizer.from_file(str(tokenizer_file))
    texts = mixture(config.corpora, config.seed)
    tokenizer = train_tokenizer(texts, config.vocab_size)
    write_tokens(texts, tokenizer, tokens_file)
    tokenizer.save(str(tokenizer_file))
    return tokenizer


def model_config(config: PretrainConfig, tokenizer: tokenizers.Tokenizer) -> ModelConfig:
    """The model's config.json; its vocabulary is as large as the tokenizer turned out."""
    shape = config.model
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


def make_optimizer(model: Transformer, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019); only matrices decay."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))


def learning_rate(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, then a cosine from the peak down to the final rate."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    swing = 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_learning_rate + swing * (config.learning_rate - config.final_learning_rate)


def batch_loss(model: Transformer, rows: np.ndarray, dtype: str) -> Tensor:
    """Mean cross-entropy in nats per token of int64 rows [rows, length + 1]."""
    batch = torch.from_numpy(rows)
    inputs, targets = batch[:, :-1].flatten(), batch[:, 1:].flatten()
    context = PackedCausal(rows=len(batch), length=batch.shape[1] - 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        hidden = model(inputs, context)
        losses = [
            F.cross_entropy(model.logits(part), wanted, reduction="sum")
            for part, wanted in zip(
                hidden.split(_LOSS_ROWS), targets.split(_LOSS_ROWS), strict=True
            )
        ]
    return torch.stack(losses).sum() / len(targets)


@torch.no_grad()
def validation_loss(model: Transformer, rows: np.ndarray, dtype: str) -> float:
    """Mean cross-entropy in nats per token over the held-out rows."""
    losses = [batch_loss(model, rows[i : i + 8], dtype) for i in range(0, len(rows), 8)]
    return torch.stack(losses).mean().item()


def save_checkpoint(
    path: Path, model: Transformer, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Atomically: a crash while writing leaves the checkpoint before."""
    partial = path.with_suffix(".partial")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, partial)
    partial.replace(path)


def load_checkpoint(path: Path, model: Transformer, optimizer: torch.optim.Optimizer) -> int:
    """Restore the last checkpoint; returns the step to go on with, 0 without one."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
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
        "repetition_penalty": 1.1,
    }
    for name, content in (("tokenizer_config", special), ("generation_config", sampling)):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (directory / f"{name}.json").write_text(text, encoding="utf-8")
