"""A copy of a model with more tokens, whose rows an adapter can then train."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from torch import Tensor, nn

from hagane.models.formats.dense import DenseEmbedding
from hagane.system.errors import ConfigurationError
from hagane.system.files import write_text
from hagane.text.companions import write_companions
from hagane.text.tokenizer import Tokenizer
from hagane.weights.load import load_model, save_model
from hagane.weights.quantize import COMPANIONS
from hagane.weights.sources.config import is_gguf, load_config


@torch.no_grad()
def widen_directory(base: Path, destination: Path, tokens: Sequence[str]) -> dict[str, int]:
    """Write `base` with `tokens` added to its vocabulary; returns their ids.

    A new token's rows of the embedding and the head are the means of those of the tokens that its
    text was before. Ids that the model has rows for, but no token, are used first. Raises
    ConfigurationError if the base is quantized, `destination` is not empty or something is a token
    already, and ModelError if the base cannot be read.
    """
    config = load_config(base)
    if config.quantization is not None:
        raise ConfigurationError(f"{base} is quantized: widen the unquantized model")
    if destination.exists() and any(destination.iterdir()):
        raise ConfigurationError(f"{destination} is not empty: name a new directory")
    pieces = _pieces(Tokenizer.load(base), tokens)
    dtype = getattr(torch, config.dtype)
    model, _ = load_model(base, device="cpu", dtype=dtype, quantization=None)
    ends: list[nn.Module] = [model.model.embed_tokens]
    if not config.tie_word_embeddings:
        ends.append(model.lm_head)
    embeddings = [end for end in ends if isinstance(end, DenseEmbedding)]
    if len(embeddings) < len(ends):
        raise ConfigurationError(f"{base} has an embedding that cannot be widened")
    destination.mkdir(parents=True, exist_ok=True)
    if is_gguf(base):
        write_companions(base, destination)
    for name in COMPANIONS:
        if (base / name).is_file():
            shutil.copyfile(base / name, destination / name)
    ids = _add_tokens(destination / "tokenizer.json", tokens)
    size = max(config.vocab_size, *(number + 1 for number in ids.values()))
    rows = {ids[token]: pieces[token] for token in tokens}
    for embedding in embeddings:
        _widen(embedding, size, rows)
    model.config = replace(config, vocab_size=size, raw={**config.raw, "vocab_size": size})
    save_model(model, destination, dtype=dtype)
    return ids


def _pieces(tokenizer: Tokenizer, tokens: Sequence[str]) -> dict[str, list[int]]:
    """What each text is in tokens now. Raises ConfigurationError where that is one, or none."""
    found = {}
    for token in tokens:
        found[token] = tokenizer.encode(token, add_special_tokens=False)
        if len(found[token]) < 2:
            raise ConfigurationError(f"{token!r} is a token of the model already, or no text")
    if not found:
        raise ConfigurationError("no tokens are given")
    return found


def _add_tokens(path: Path, tokens: Sequence[str]) -> dict[str, int]:
    backend = Backend.from_str(path.read_text(encoding="utf-8"))
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    write_text(path, json.dumps(json.loads(backend.to_str()), ensure_ascii=False) + "\n")
    ids: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    return {token: ids[token] for token in tokens}


def _widen(embedding: DenseEmbedding, size: int, rows: Mapping[int, Sequence[int]]) -> None:
    """Give `embedding` `size` rows; those that `rows` names are means of older ones."""
    weight = embedding.weight.data
    more = size - len(weight)
    widened = torch.cat([weight, weight.new_zeros(more, weight.shape[1])])
    for number, pieces in rows.items():
        widened[number] = _mean(weight[list(pieces)])
    embedding.weight = nn.Parameter(widened)
    if embedding.bias is not None:
        old = embedding.bias.data
        embedding.bias = nn.Parameter(torch.cat([old, old.new_zeros(more)]))


def _mean(rows: Tensor) -> Tensor:
    return rows.float().mean(0).to(rows.dtype)
