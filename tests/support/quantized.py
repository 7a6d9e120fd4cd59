"""Writes a Hugging Face directory as other programs quantize it, and what its weights then are.

Layouts are written from the descriptions of AutoGPTQ, AutoAWQ, compressed-tensors and DeepSeek, bit
by bit, and not with the code under test.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

LINEAR = ("_proj.weight",)
_AWQ = [0, 2, 4, 6, 1, 3, 5, 7]
Tensors = dict[str, torch.Tensor]


def pack_bits(codes: np.ndarray, bits: int) -> torch.Tensor:
    """Codes [n, m] as a stream of bits, the lowest first -> int32 [n, m * bits / 32]."""
    stream = np.unpackbits(codes.astype(np.uint8)[..., None], axis=-1, bitorder="little")
    flat = stream[..., :bits].reshape(len(codes), -1)
    return torch.from_numpy(np.packbits(flat, axis=1, bitorder="little").view(np.int32).copy())


@dataclass
class Codes:
    """A quantized matrix [out, in]: scale * (code - zero), a scale per group of inputs."""

    codes: np.ndarray
    scale: torch.Tensor
    zeros: np.ndarray
    group_of: np.ndarray

    def dequantize(self) -> torch.Tensor:
        centered = self.codes.astype(np.float32) - self.zeros.astype(np.float32)[:, self.group_of]
        return torch.from_numpy(centered) * self.scale.float()[:, self.group_of]


def quantize(
    weight: torch.Tensor,
    bits: int,
    group: int,
    *,
    symmetric: bool = True,
    order: np.ndarray | None = None,
    dtype: torch.dtype = torch.float16,
) -> Codes:
    """Round to nearest. `order` are the inputs in the order in which they are grouped."""
    inputs, most = weight.shape[1], (1 << bits) - 1
    group_of = np.arange(inputs) // group
    if order is not None:
        group_of = np.empty(inputs, np.int64)
        group_of[order] = np.arange(inputs) // group
    wide = weight.float().numpy()
    parts = [wide[:, group_of == index] for index in range(group_of.max() + 1)]
    least = np.stack([part.min(1) for part in parts], 1)
    largest = np.stack([part.max(1) for part in parts], 1)
    if symmetric:
        scale = np.maximum(np.maximum(-least, largest), 1e-6) / (most / 2)
        zeros = np.full(scale.shape, (most + 1) // 2)
    else:
        scale = np.maximum(largest - least, 1e-6) / most
        zeros = np.clip(np.round(-least / scale), 0, most)
    stored = torch.from_numpy(scale).to(dtype)
    rounded = np.round(wide / stored.float().numpy()[:, group_of]) + zeros[:, group_of]
    return Codes(np.clip(rounded, 0, most), stored, zeros, group_of)


def gptq(found: Codes, bits: int, *, offset: int = 1) -> Tensors:
    return {
        "qweight": pack_bits(found.codes, bits).t().contiguous(),
        "qzeros": pack_bits((found.zeros.T - offset) % (1 << bits), bits),
        "scales": found.scale.t().contiguous(),
        "g_idx": torch.from_numpy(found.group_of).int(),
    }


def awq(found: Codes) -> Tensors:
    def pack(values: np.ndarray) -> torch.Tensor:
        return pack_bits(values.T.reshape(values.shape[1], -1, 8)[..., _AWQ].reshape(
            values.shape[1], -1), 4)  # fmt: skip

    return {
        "qweight": pack(found.codes),
        "qzeros": pack(found.zeros),
        "scales": found.scale.t().contiguous(),
    }


def compressed(found: Codes, bits: int, *, symmetric: bool) -> Tensors:
    tensors = {
        "weight_packed": pack_bits(found.codes, bits),
        "weight_scale": found.scale,
        "weight_shape": torch.tensor(found.codes.shape),
    }
    if not symmetric:
        tensors["weight_zero_point"] = pack_bits(found.zeros.T, bits).t().contiguous()
    if (np.diff(found.group_of) < 0).any():
        tensors["weight_g_idx"] = torch.from_numpy(found.group_of).int()
    return tensors


def fp8(weight: torch.Tensor, block: tuple[int, int], name: str) -> tuple[Tensors, torch.Tensor]:
    """With a scale for each block of (rows, columns), which need not divide the matrix."""
    rows, columns = (torch.arange(size) // step for size, step in zip(weight.shape, block))  # noqa: B905
    scale = torch.zeros(int(rows[-1]) + 1, int(columns[-1]) + 1)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            scale[i, j] = weight[rows == i][:, columns == j].abs().max().clamp_min(1e-6) / 448
    spread = scale[rows][:, columns]
    codes = (weight.float() / spread).to(torch.float8_e4m3fn)
    return {"weight": codes, name: scale}, codes.float() * spread


@dataclass(frozen=True)
class Kind:
    """One way to store a model.

    `config` is its `quantization_config`; `store` gives the tensors
    of a matrix and its dequantized values.
    """

    config: dict[str, Any]
    store: Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]


def _gptq(bits: int, group: int, *, symmetric: bool = True, ordered: bool = False,
          version: int = 1) -> Kind:  # fmt: skip
    def store(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        inputs = weight.shape[1]
        order = np.random.default_rng(inputs).permutation(inputs) if ordered else None
        size = inputs if group == -1 else group
        found = quantize(weight, bits, size, symmetric=symmetric, order=order)
        return gptq(found, bits, offset=2 - version), found.dequantize()

    return Kind(
        {
            "quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": ordered,
            "sym": symmetric, "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
        },
        store,
    )  # fmt: skip


def _awq(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    found = quantize(weight, 4, 32, symmetric=False)
    return awq(found), found.dequantize()


def _compressed(config: dict[str, Any], form: str) -> dict[str, Any]:
    inputs = {"num_bits": 8, "dynamic": True} if form != "pack-quantized" else None
    groups = {"group_0": {"targets": ["Linear"], "weights": config, "input_activations": inputs}}
    return {
        "quant_method": "compressed-tensors", "format": form, "config_groups": groups,
        "ignore": ["lm_head"], "sparsity_config": {}, "transform_config": {},
    }  # fmt: skip


def _packed(bits: int, group: int, *, symmetric: bool = True, ordered: bool = False) -> Kind:
    def store(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        order = np.random.default_rng(0).permutation(weight.shape[1]) if ordered else None
        found = quantize(
            weight, bits, group, symmetric=symmetric, order=order, dtype=torch.bfloat16
        )
        return compressed(found, bits, symmetric=symmetric), found.dequantize()

    weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": group}
    return Kind(_compressed(weights, "pack-quantized"), store)


def _int8(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    found = quantize(weight, 8, weight.shape[1], dtype=torch.bfloat16)
    codes = torch.from_numpy(found.codes - 128).to(torch.int8)
    return {"weight": codes, "weight_scale": found.scale}, found.dequantize()


def _fp8_rows(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    return fp8(weight, (1, weight.shape[1]), "weight_scale")


def _fp8_whole(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    tensors, values = fp8(weight, tuple(weight.shape), "weight_scale")
    return {**tensors, "weight_scale": tensors["weight_scale"].view(1)}, values


KINDS = {
    "gptq": _gptq(4, 32),
    "gptq-v2": _gptq(4, 32, symmetric=False, version=2),
    "gptq-asymmetric": _gptq(4, 32, symmetric=False),
    "gptq-ordered": _gptq(4, 32, ordered=True),
    "gptq-rows": _gptq(4, -1),
    "gptq-8": _gptq(8, 32, symmetric=False, ordered=True),
    "gptq-3": _gptq(3, 32),
    "gptq-2": _gptq(2, 32, symmetric=False),
    "awq": Kind(
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
        _awq,
    ),
    "w4a16": _packed(4, 32),
    "w4a16-asymmetric": _packed(4, 32, symmetric=False),
    "w4a16-ordered": _packed(4, 32, ordered=True),
    "w8a16": _packed(8, 32),
    "w8a8": Kind(
        _compressed({"num_bits": 8, "type": "int", "strategy": "channel"}, "int-quantized"), _int8
    ),
    "fp8-rows": Kind(
        _compressed({"num_bits": 8, "type": "float", "strategy": "channel"}, "float-quantized"),
        _fp8_rows,
    ),
    "fp8-whole": Kind({"quant_method": "fp8", "activation_scheme": "dynamic"}, _fp8_whole),
    "fp8-blocks": Kind(
        {"quant_method": "fp8", "weight_block_size": [48, 48], "activation_scheme": "dynamic"},
        lambda weight: fp8(weight, (48, 48), "weight_scale_inv"),
    ),
}  # fmt: skip


def write_quantized(directory: Path, target: Path, kind: Kind, **changes: Any) -> Tensors:
    """Write the model in `directory` with its linear layers of `kind`; returns the float weights.

    `changes` are to the `quantization_config`.
    """
    shutil.copytree(directory, target)
    stored: Tensors = {}
    values: Tensors = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        if not name.endswith(LINEAR):
            stored[name] = values[name] = tensor
            continue
        tensors, values[name] = kind.store(tensor)
        stored |= {name.removesuffix("weight") + key: value for key, value in tensors.items()}
    save_file(
        {name: t.contiguous() for name, t in stored.items()},
        target / "model.safetensors", metadata={"format": "pt"},
    )  # fmt: skip
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {**kind.config, **changes}
    (target / "config.json").write_text(json.dumps(config))
    return values
