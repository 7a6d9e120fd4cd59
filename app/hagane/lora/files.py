"""LoRA adapters as tensors, read and written in PEFT's directory format.

An adapter adds scale * B A x to the linear layers that it names; with DoRA it scales rows, too
(`lora/dora.py`). It may replace rows of the embedding and the head: those of tokens that it taught
the model. The model fuses query, key and
value, and gate and up; adapters keep them apart, under their names in Hugging Face checkpoints,
or change what is one matrix there together (`lora/stored_names.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save_file
from torch import Tensor

from hagane.lora.config import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    EMBEDDING,
    HEAD,
    AdapterConfig,
    adapter_digest,
)
from hagane.lora.stored_names import StoredMatrix, by_module, stored_matrices
from hagane.models.config import ModelConfig
from hagane.models.spec import linear_shapes
from hagane.system.errors import ModelError
from hagane.system.files import commit, read_regular, write_text

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# What PEFT calls the tensors of a module: A, B, and with DoRA the magnitudes of its rows.
_KINDS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
# And the new rows of an embedding and a head, which are not relative to the old ones.
_TOKEN_TENSORS = {
    EMBEDDING: "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
    HEAD: "base_model.model.lm_head.token_adapter.trainable_tokens_delta",
}
# The most bytes that a file's header may add to its tensors.
_HEADER = 16 << 20


@dataclass(frozen=True, eq=False)
class LowRank:
    """The change to one matrix [out, in]: scale * b [out, rank] @ a [rank, in].

    DoRA's has a `magnitude` [out] of each row, and a `gain` [out] once the matrix is known.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None
    gain: Tensor | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """Those that are stored, in the order of `save_adapter`."""
        factors = self.a, self.b
        return factors if self.magnitude is None else (*factors, self.magnitude)


@dataclass(frozen=True, eq=False)
class TokenRows:
    """New rows [n, hidden], floats, of the tokens `ids` in the embedding or the head."""

    ids: tuple[int, ...]
    values: Tensor


@dataclass(frozen=True, eq=False)
class Adapter:
    """All changes of one adapter by module path, such as `layers.0.self_attn.q_proj`.

    `tokens` has rows of `embed_tokens`, and of `lm_head` unless the head is the embedding.
    """

    config: AdapterConfig
    changes: Mapping[str, LowRank]
    digest: str
    tokens: Mapping[str, TokenRows] = field(default_factory=dict)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All that is stored, with the module that it changes."""
        for module, change in self.changes.items():
            yield from ((module, tensor) for tensor in change.tensors())
        for module, rows in self.tokens.items():
            yield module, rows.values


def load_adapter(directory: Path, model: ModelConfig) -> Adapter:
    """Read a PEFT directory for the model of `model`; tensors keep their stored dtype.

    Raises ModelError naming the file and the tensor at fault.
    """
    config = AdapterConfig.load(directory)
    path = directory / ADAPTER_WEIGHTS_FILE
    if not path.exists():
        pickled = " (adapter_model.bin is a pickle, which is never loaded: convert it)"
        hint = pickled if (directory / "adapter_model.bin").exists() else ""
        raise ModelError(f"{path} does not exist{hint}")
    kinds = _KINDS if config.dora else _KINDS[:2]
    matrices = _matrices(model)
    placed = _placed(directory, config, matrices)
    expected: dict[str, tuple[int, ...]] = {}
    for matrix, (rank, _) in placed.items():
        rows, columns = matrices[matrix].rows, matrices[matrix].columns
        parts = zip(kinds, ((rank, columns), (rows, rank), (rows,)), strict=False)
        expected |= {_name(matrix, kind): shape for kind, shape in parts}
    token_ids = _token_ids(directory, config, model)
    for module, ids in token_ids.items():
        expected[_TOKEN_TENSORS[module]] = (len(ids), model.hidden_size)
    tensors = _read_tensors(path, expected)
    changes, strengths = {}, {}
    for matrix, (rank, scale) in placed.items():
        found = {k: tensors[_name(matrix, k)] for k in kinds if _name(matrix, k) in tensors}
        if found and len(found) < len(kinds):
            names = " and ".join(kind.removesuffix(".weight") for kind in found)
            raise ModelError(f"{path}: {matrix} has only {names}")
        if not found:
            continue
        a, *rows_of = found.values()
        for number, module in enumerate(matrices[matrix].modules):
            if module in changes:
                raise ModelError(f"{path} changes {module} twice: by two names")
            b, *magnitude = (matrices[matrix].part(model, rows, number) for rows in rows_of)
            changes[module], strengths[module] = LowRank(a, b, scale, *magnitude), (rank, scale)
    replaced = {}
    for module, ids in token_ids.items():
        if (values := tensors.get(_TOKEN_TENSORS[module])) is None:
            raise ModelError(f"{path} has no {_TOKEN_TENSORS[module]}")
        replaced[module] = TokenRows(ids, values)
    if any(f"model.{module}" not in placed for module in changes):
        config = by_module(config, strengths)
    return Adapter(config, changes, adapter_digest(directory), replaced)


def _matrices(model: ModelConfig) -> dict[str, StoredMatrix]:
    """By the paths that adapters give them; where transformers has its own, by both."""
    own = {
        f"model.{module}": StoredMatrix(*shape, (module,))
        for module, shape in linear_shapes(model).items()
    }
    return own | stored_matrices(model)


def _placed(
    directory: Path, config: AdapterConfig, matrices: Mapping[str, StoredMatrix]
) -> dict[str, tuple[int, float]]:
    """Rank and scale of each matrix that is changed. Raises ModelError if there is none."""
    if placed := config.resolve(list(matrices), prefix=""):
        return placed
    names = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in matrices))
    raise ModelError(
        f"{directory / ADAPTER_CONFIG_FILE}: target_modules {config.target_modules!r} names no "
        f"matrix of the model; there are {names}"
    )


def _token_ids(
    directory: Path, config: AdapterConfig, model: ModelConfig
) -> dict[str, tuple[int, ...]]:
    """Those of the configuration that the file has rows for. Raises ModelError."""
    path, found = directory / ADAPTER_CONFIG_FILE, dict(config.token_ids)
    if model.tie_word_embeddings and HEAD in found and found.pop(HEAD) != found.get(EMBEDDING):
        raise ModelError(
            f"{path}: trainable_token_indices has other tokens for {HEAD} than for {EMBEDDING}, "
            "but in this model they are one"
        )
    for ids in found.values():
        if ids and max(ids) >= model.vocab_size:
            raise ModelError(
                f"{path}: trainable_token_indices names token {max(ids)}; the model has "
                f"{model.vocab_size}: load it for the model that it was trained on, which has more"
            )
    return {module: ids for module, ids in found.items() if ids}


def _name(path: str, kind: str) -> str:
    return f"base_model.model.{path}.{kind}"


def _read_tensors(path: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of a file, which are all among those `expected`, by name with their shape.

    The file is read, not mapped: truncating a mapped file would kill this process.
    """
    largest = _HEADER + 8 * sum(math.prod(shape) for shape in expected.values())
    content = read_regular(path, largest)
    try:
        tensors: dict[str, Tensor] = safetensors_load(content)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} is truncated or not a safetensors file: {error}") from None
    for name, tensor in sorted(tensors.items()):
        if name not in expected and ".experts." in name:
            raise ModelError(
                f"{path}: tensor {name} changes an expert of a mixture, which is not supported: "
                "train without experts in target_modules"
            )
        if name not in expected:
            raise ModelError(
                f"{path}: tensor {name} is unexpected in a LoRA adapter for this model whose "
                "configuration names these modules; is it another model's?"
            )
        if tuple(tensor.shape) != expected[name]:
            raise ModelError(
                f"{path}: {name} has shape {list(tensor.shape)}, the model and the adapter's rank "
                f"ask for {list(expected[name])}"
            )
        if tensor.dtype not in _DTYPES:
            raise ModelError(
                f"{path}: {name} has dtype {tensor.dtype}; factors are floats of 16 or 32 bits"
            )
    if not tensors:
        raise ModelError(f"{path} holds no tensors")
    return tensors


def save_adapter(
    directory: Path,
    config: AdapterConfig,
    factors: Mapping[str, tuple[Tensor, ...]],
    tokens: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Write a PEFT directory, each file atomically.

    `factors` by module path are (A, B), or with DoRA (A, B, magnitudes). `tokens` are the rows of
    the configuration's `token_ids`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        _name(f"model.{module}", kind): factor.detach().to("cpu", copy=True).contiguous()
        for module, own in factors.items()
        for kind, factor in zip(_KINDS, own, strict=False)
    }
    for module, rows in tokens.items():
        tensors[_TOKEN_TENSORS[module]] = rows.detach().to("cpu").contiguous()
    partial = directory / f".{ADAPTER_WEIGHTS_FILE}.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    commit(partial, directory / ADAPTER_WEIGHTS_FILE)
    write_text(directory / ADAPTER_CONFIG_FILE, json.dumps(config.to_dict(), indent=2) + "\n")
