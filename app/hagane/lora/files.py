"""LoRA adapters as tensors, read and written in PEFT's directory format.

An adapter adds scale * B A x to the linear layers that it names. The model fuses query, key and
value, and gate and up; adapters keep them apart, under their names in Hugging Face checkpoints.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hagane.lora.config import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    AdapterConfig,
    adapter_digest,
)
from hagane.models.config import ModelConfig
from hagane.system.errors import ModelError
from hagane.system.files import commit, write_text

_KEY = re.compile(r"base_model\.model\.model\.(layers\.\d+\.\w+\.\w+)\.lora_([AB])\.weight")


@dataclass(frozen=True, eq=False)
class LowRank:
    """The change to one matrix [out, in]: scale * b [out, rank] @ a [rank, in]."""

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True, eq=False)
class Adapter:
    """All changes of one adapter by module path, such as `layers.0.self_attn.q_proj`."""

    config: AdapterConfig
    changes: Mapping[str, LowRank]
    digest: str


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of every matrix that an adapter may change, by module path."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    kinds = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    return {
        f"layers.{layer}.{kind}": shape
        for layer in range(config.layers)
        for kind, shape in kinds.items()
    }


def load_adapter(directory: Path, model: ModelConfig) -> Adapter:
    """Read a PEFT directory for the model of `model`; tensors keep their stored dtype.

    Raises ModelError naming the file and the tensor at fault.
    """
    config = AdapterConfig.load(directory)
    path = directory / ADAPTER_WEIGHTS_FILE
    if not path.is_file():
        pickled = " (adapter_model.bin is a pickle, which is never loaded: convert it)"
        hint = pickled if (directory / "adapter_model.bin").is_file() else ""
        raise ModelError(f"{path} does not exist{hint}")
    factors = _read_factors(path)
    shapes = linear_shapes(model)
    changes = {}
    for module, pair in sorted(factors.items()):
        if module not in shapes:
            raise ModelError(f"{path}: the model has no matrix {module}; is it another model's?")
        if set(pair) != {"A", "B"}:
            raise ModelError(f"{path}: {module} has only lora_{next(iter(pair))}")
        (out, width), rank = shapes[module], config.rank_of(module)
        for letter, shape in (("A", (rank, width)), ("B", (out, rank))):
            if tuple(pair[letter].shape) != shape:
                raise ModelError(
                    f"{path}: lora_{letter} of {module} has shape {list(pair[letter].shape)}, the "
                    f"model and the adapter's rank ask for {list(shape)}"
                )
        changes[module] = LowRank(pair["A"], pair["B"], config.scale_of(module))
    return Adapter(config, changes, adapter_digest(directory))


def _read_factors(path: Path) -> dict[str, dict[str, Tensor]]:
    factors: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                match = _KEY.fullmatch(key)
                if match is None:
                    raise ModelError(f"{path}: tensor {key} is unexpected in a LoRA adapter")
                # A copy: whoever cuts the mapped file short would end the process that reads it.
                factors.setdefault(match[1], {})[match[2]] = file.get_tensor(key).clone()
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is truncated or not a safetensors file: {error}") from None
    if not factors:
        raise ModelError(f"{path} holds no tensors")
    return factors


def save_adapter(
    directory: Path, config: AdapterConfig, factors: Mapping[str, tuple[Tensor, Tensor]]
) -> None:
    """Write factors (A, B) by module path as a PEFT directory, each file whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, (a, b) in factors.items():
        for letter, factor in (("A", a), ("B", b)):
            key = f"base_model.model.model.{module}.lora_{letter}.weight"
            tensors[key] = factor.detach().to("cpu").contiguous()
    partial = directory / f".{ADAPTER_WEIGHTS_FILE}.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    commit(partial, directory / ADAPTER_WEIGHTS_FILE)
    write_text(directory / ADAPTER_CONFIG_FILE, json.dumps(config.to_dict(), indent=2) + "\n")
