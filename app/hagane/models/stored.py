"""How checkpoints of other programs keep their matrices, by their `quantization_config`. No torch.

    GPTQ                 AutoGPTQ, GPTQModel: codes packed along the inputs
    AWQ                  AutoAWQ's GEMM version: codes packed along the outputs
    compressed-tensors   llm-compressor: packed codes, or a tensor of 8-bit integers or floats
    fp8                  8-bit floats, one scale per matrix, row or block (DeepSeek, Qwen3)
    MXFP4                4-bit floats with a power of two per 32: experts of gpt-oss

Bits, groups and zero points of a matrix, and whether it is quantized at all, are read off its
tensors; the configuration says what these cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from hagane.system.errors import ModelError
from hagane.system.shapes import shaped

CONFIG_KEY = "quantization_config"
# Where programs wrote it before `config.json` had a place for it, and the method that is meant.
OWN_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_REMEDY = "use the unquantized model and --quantize, or another quantization of it"

# The experts of others lie in other tensors.
_MXFP4_ARCHITECTURE = "GptOssForCausalLM"

Method = Literal["gptq", "awq", "compressed-tensors", "fp8", "mxfp4"]
_Side = Annotated[int, Meta(ge=1, le=1 << 16)]


@dataclass(frozen=True)
class StoredFormat:
    """The format of a checkpoint; `summary` is for people.

    `bits` are those of most matrices. `zero_offset` is added to GPTQ's stored zero points. `block`
    are the rows and columns that share a scale where scales are in blocks.
    """

    method: Method
    summary: str
    bits: int
    zero_offset: int = 0
    block: tuple[int, int] = (128, 128)


class _GPTQ(msgspec.Struct, frozen=True):
    bits: int
    group_size: int = -1
    desc_act: bool = False
    checkpoint_format: str | None = None
    pack_dtype: str = "int32"
    is_marlin_format: bool = False


class _AWQ(msgspec.Struct, frozen=True):
    # Two names each: the second is that of AutoAWQ's own file.
    bits: int | None = None
    w_bit: int | None = None
    group_size: int | None = None
    q_group_size: int | None = None
    version: str = "gemm"


class _Weights(msgspec.Struct, frozen=True):
    num_bits: int = 8
    type: str = "int"
    strategy: str | None = None
    group_size: int | None = None
    block_structure: tuple[_Side, _Side] | None = None


class _Group(msgspec.Struct, frozen=True):
    weights: _Weights | None = None
    input_activations: _Weights | None = None


class _Sparsity(msgspec.Struct, frozen=True):
    format: str | None = None


class _Compressed(msgspec.Struct, frozen=True):
    format: str
    config_groups: dict[str, _Group] = {}
    sparsity_config: _Sparsity | None = None
    transform_config: dict[str, Any] | None = None


class _Fp8(msgspec.Struct, frozen=True):
    weight_block_size: tuple[_Side, _Side] | None = None
    fmt: str = "e4m3"


@dataclass(frozen=True)
class _Found:
    """A `quantization_config` and what errors call it."""

    raw: Mapping[str, Any]
    source: str

    def unsupported(self, key: str, value: object, supported: str) -> ModelError:
        return ModelError(
            f"{self.source}: {CONFIG_KEY}.{key} is {value!r}; supported is {supported}: {_REMEDY}"
        )


def stored_format(config: Mapping[str, Any], source: str) -> StoredFormat | None:
    """The format that a `config.json` names; None for floats and Hagane's own formats.

    Raises ModelError naming the key, its value and what to do about it.
    """
    raw = config.get(CONFIG_KEY, config.get("compression_config"))
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise ModelError(f"{source}: {CONFIG_KEY} is {raw!r}, not an object: {_REMEDY}")
    found = _Found(raw, source)
    method = raw.get("quant_method")
    if method == "hagane":
        return None
    read = _METHODS.get(method) if isinstance(method, str) else None
    if read is None:
        raise found.unsupported("quant_method", method, ", ".join(_METHODS))
    stored = read(found)
    if stored.method == "mxfp4" and config.get("architectures") != [_MXFP4_ARCHITECTURE]:
        raise found.unsupported("quant_method", method, f"that of {_MXFP4_ARCHITECTURE} alone")
    return stored


def _gptq(found: _Found) -> StoredFormat:
    keys = shaped(found.raw, _GPTQ, f"{found.source}: {CONFIG_KEY}")
    if keys.bits not in (2, 3, 4, 8):
        raise found.unsupported("bits", keys.bits, "2, 3, 4 or 8")
    form = "marlin" if keys.is_marlin_format else keys.checkpoint_format or "gptq"
    if form not in ("gptq", "gptq_v2"):
        raise found.unsupported("checkpoint_format", form, "gptq or gptq_v2")
    if keys.pack_dtype != "int32":
        raise found.unsupported("pack_dtype", keys.pack_dtype, "int32")
    ordered = ", inputs by activation" if keys.desc_act else ""
    summary = f"GPTQ, {keys.bits} bits, {_groups(keys.group_size)}{ordered}"
    # The first version stored zero points less one.
    return StoredFormat("gptq", summary, keys.bits, zero_offset=1 if form == "gptq" else 0)


def _awq(found: _Found) -> StoredFormat:
    keys = shaped(found.raw, _AWQ, f"{found.source}: {CONFIG_KEY}")
    bits = keys.bits or keys.w_bit
    if bits != 4:
        raise found.unsupported("bits", bits, "4")
    if keys.version.lower() != "gemm":
        raise found.unsupported("version", keys.version, "gemm")
    size = keys.group_size or keys.q_group_size or -1
    return StoredFormat("awq", f"AWQ, {bits} bits, {_groups(size)}", bits)


def _compressed(found: _Found) -> StoredFormat:
    keys = shaped(found.raw, _Compressed, f"{found.source}: {CONFIG_KEY}")
    known = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized",
             "mixed-precision")  # fmt: skip
    if keys.format not in known:
        raise found.unsupported("format", keys.format, ", ".join(known))
    sparse = keys.sparsity_config.format if keys.sparsity_config else None
    if sparse not in (None, "dense"):
        raise found.unsupported("sparsity_config.format", sparse, "dense")
    if keys.transform_config and keys.transform_config.get("config_groups"):
        raise found.unsupported("transform_config", "given", "none")
    groups = [group for group in keys.config_groups.values() if group.weights is not None]
    shown = " and ".join(dict.fromkeys(map(_scheme, groups))) or keys.format
    weights = [group.weights for group in groups if group.weights is not None]
    block = next((each.block_structure for each in weights if each.block_structure), (128, 128))
    bits = weights[0].num_bits if weights else 8
    return StoredFormat("compressed-tensors", f"compressed-tensors, {shown}", bits, block=block)


def _scheme(group: _Group) -> str:
    """A scheme for people, such as "W4A16 int, groups of 128"."""
    weights, inputs = group.weights or _Weights(), group.input_activations
    per = _groups(weights.group_size) if weights.group_size else weights.strategy or "tensor"
    return f"W{weights.num_bits}A{16 if inputs is None else inputs.num_bits} {weights.type}, {per}"


def _fp8(found: _Found) -> StoredFormat:
    keys = shaped(found.raw, _Fp8, f"{found.source}: {CONFIG_KEY}")
    if keys.fmt != "e4m3":
        raise found.unsupported("fmt", keys.fmt, "e4m3")
    rows, columns = block = keys.weight_block_size or (128, 128)
    per = f"blocks of {rows} x {columns}" if keys.weight_block_size else "one scale per matrix"
    return StoredFormat("fp8", f"fp8, {per}", 8, block=block)


def _fbgemm(found: _Found) -> StoredFormat:
    return StoredFormat("fp8", "fp8, one scale per row", 8)


def _mxfp4(found: _Found) -> StoredFormat:
    return StoredFormat("mxfp4", "MXFP4, 4 bits, groups of 32", 4)


def _groups(size: int) -> str:
    return f"groups of {size}" if size > 0 else "one group per row"


_METHODS: Mapping[str, Callable[[_Found], StoredFormat]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm,
    "mxfp4": _mxfp4,
}
