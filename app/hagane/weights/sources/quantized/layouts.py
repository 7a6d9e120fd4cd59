"""Where each format keeps codes, scales and zero points, and how they are packed.

    GPTQ    qweight [in * bits / 32, out]   packed along the inputs     AutoGPTQ, GPTQModel
            qzeros  [groups, out * bits / 32], scales [groups, out], g_idx [in]
    AWQ     qweight [in, out / 8]           packed along the outputs, in an order of its own
            qzeros  [groups, out / 8], scales [groups, out]             AutoAWQ, "gemm"
    packed  weight_packed [out, in * bits / 32], weight_scale [out, groups]   compressed-tensors
            weight_zero_point [out * bits / 32, groups], weight_g_idx [in]
    int8    weight int8 [out, in], weight_scale [out, groups]           compressed-tensors
    fp8     weight e4m3 [out, in], weight_scale or weight_scale_inv [out / rows, in / columns]

A matrix of 1 scale, or [out, 1], is one block, or one to each row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from hagane.models.stored import StoredFormat
from hagane.system.errors import ModelError
from hagane.weights.sources.quantized.bits import unpack
from hagane.weights.sources.quantized.matrices import ChannelMatrix, Fp8Matrix, GroupedMatrix
from hagane.weights.sources.safetensors import SafetensorsCheckpoint

Matrix = GroupedMatrix | ChannelMatrix | Fp8Matrix
# The eight outputs of a word of AWQ, by their place in it.
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True)
class LayerTensors:
    """The tensors of one linear layer of a checkpoint."""

    checkpoint: SafetensorsCheckpoint
    name: str

    def shape(self, kind: str) -> tuple[int, ...] | None:
        return self.checkpoint.shape(f"{self.name}.{kind}")

    def has(self, kind: str) -> bool:
        return self.shape(kind) is not None

    def dtype(self, kind: str) -> str | None:
        return self.checkpoint.dtype(f"{self.name}.{kind}")

    def read(self, kind: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """The tensor of `shape`. Raises ModelError if it has another one, or another dtype."""
        tensor = self.checkpoint.read(f"{self.name}.{kind}", shape)
        if dtype is not None and tensor.dtype != dtype:
            raise self.error(kind, f"is {tensor.dtype}, not {dtype}")
        return tensor

    def stored(self, kind: str) -> Tensor:
        """The tensor, of whatever shape it has."""
        return self.read(kind, self.shape(kind) or ())

    def error(self, kind: str, problem: str) -> ModelError:
        return ModelError(f"{self.checkpoint.directory}: tensor {self.name}.{kind} {problem}")


class Layout:
    """How one format keeps a matrix. `kinds` are the tensors besides `weight` that belong to it."""

    kinds: tuple[str, ...]

    def has(self, layer: LayerTensors) -> bool:
        """Whether the layer is kept so; else its weights are floats."""
        raise NotImplementedError

    def shape(self, layer: LayerTensors, form: StoredFormat) -> tuple[int, ...]:
        raise NotImplementedError

    def read(self, layer: LayerTensors, size: tuple[int, int], form: StoredFormat) -> Matrix:
        """Raises ModelError naming the tensor that does not fit."""
        raise NotImplementedError


class GPTQLayout(Layout):
    kinds = ("qweight", "qzeros", "scales", "g_idx")

    def has(self, layer: LayerTensors) -> bool:
        return layer.has("qweight")

    def shape(self, layer: LayerTensors, form: StoredFormat) -> tuple[int, ...]:
        words, outputs = _two(layer, "qweight")
        index = layer.shape("g_idx")
        return outputs, index[0] if index else words * 32 // form.bits

    def read(self, layer: LayerTensors, size: tuple[int, int], form: StoredFormat) -> GroupedMatrix:
        outputs, inputs = size
        words, _ = _two(layer, "qweight")
        bits = _bits(layer, "qweight", words, inputs)
        qweight = layer.read("qweight", (words, outputs), torch.int32)
        groups = _two(layer, "scales")[0]
        scale = layer.read("scales", (groups, outputs)).t().contiguous()
        qzeros = layer.read("qzeros", (groups, outputs * bits // 32), torch.int32)
        zeros = _zero_points(qzeros, bits, form.zero_offset)
        index = _group_index(layer, "g_idx", inputs, groups)

        def codes(start: int, stop: int) -> Tensor:
            return unpack(qweight[:, start:stop].t(), bits)

        return GroupedMatrix(bits, size, codes, scale, zeros.t().contiguous(), index)


class AWQLayout(Layout):
    kinds = ("qweight", "qzeros", "scales")

    def has(self, layer: LayerTensors) -> bool:
        return layer.has("qweight")

    def shape(self, layer: LayerTensors, form: StoredFormat) -> tuple[int, ...]:
        inputs, words = _two(layer, "qweight")
        return 8 * words, inputs

    def read(self, layer: LayerTensors, size: tuple[int, int], form: StoredFormat) -> GroupedMatrix:
        outputs, inputs = size
        qweight = layer.read("qweight", (inputs, outputs // 8), torch.int32)
        groups = _two(layer, "scales")[0]
        scale = layer.read("scales", (groups, outputs)).t().contiguous()
        zeros = _OutputNibbles(layer.read("qzeros", (groups, outputs // 8), torch.int32))
        codes = _OutputNibbles(qweight)
        return GroupedMatrix(4, size, codes.rows, scale, zeros.rows(0, outputs))


class _OutputNibbles:
    """Codes that AWQ packs along the outputs, int32 [n, out / 8], by outputs."""

    def __init__(self, words: Tensor) -> None:
        self._words = words

    @cached_property
    def _bytes(self) -> Tensor:
        """uint8 [out / 2, n]: transposed once, since outputs are read a few at a time."""
        return self._words.contiguous().view(torch.uint8).t().contiguous()

    def rows(self, start: int, stop: int) -> Tensor:
        """uint8 [stop - start, n]."""
        first, last = start // 8, -(-stop // 8)
        stored = self._bytes[4 * first : 4 * last]
        places = torch.stack((stored & 15, stored >> 4), dim=1).view(last - first, 8, -1)
        codes = places[:, list(_AWQ_ORDER)].flatten(0, 1)
        return codes[start - 8 * first : stop - 8 * first]


class PackedLayout(Layout):
    kinds = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")

    def has(self, layer: LayerTensors) -> bool:
        return layer.has("weight_packed")

    def shape(self, layer: LayerTensors, form: StoredFormat) -> tuple[int, ...]:
        return tuple(layer.read("weight_shape", (2,)).tolist())

    def read(self, layer: LayerTensors, size: tuple[int, int], form: StoredFormat) -> GroupedMatrix:
        outputs, inputs = size
        words = _two(layer, "weight_packed")[1]
        bits = _bits(layer, "weight_packed", words, inputs)
        packed = layer.read("weight_packed", (outputs, words), torch.int32)
        scale = _by_rows(layer, "weight_scale", outputs)
        groups = scale.shape[1]
        zeros = torch.full((outputs, groups), 1 << (bits - 1), dtype=torch.uint8)
        if layer.has("weight_zero_point"):
            zeros = self._zeros(layer, bits, outputs, groups)
        index = _group_index(layer, "weight_g_idx", inputs, groups)

        def codes(start: int, stop: int) -> Tensor:
            return unpack(packed[start:stop], bits)[:, :inputs]

        return GroupedMatrix(bits, size, codes, scale, zeros, index)

    def _zeros(self, layer: LayerTensors, bits: int, outputs: int, groups: int) -> Tensor:
        if layer.dtype("weight_zero_point") == "I32":
            words = layer.read("weight_zero_point", (-(-outputs * bits // 32), groups))
            return unpack(words.t(), bits)[:, :outputs].t().contiguous()
        # Older versions did not pack them: signed, as the codes are before they are packed.
        signed = _by_rows(layer, "weight_zero_point", outputs)
        return (signed.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)


class Int8Layout(Layout):
    kinds = ("weight_scale", "weight_zero_point", "weight_g_idx")

    def has(self, layer: LayerTensors) -> bool:
        return layer.dtype("weight") == "I8" and layer.has("weight_scale")

    def shape(self, layer: LayerTensors, form: StoredFormat) -> tuple[int, ...]:
        return layer.shape("weight") or ()

    def read(
        self, layer: LayerTensors, size: tuple[int, int], form: StoredFormat
    ) -> GroupedMatrix | ChannelMatrix:
        outputs, inputs = size
        weight = layer.read("weight", size, torch.int8)
        scale = _by_rows(layer, "weight_scale", outputs)
        groups = scale.shape[1]
        if groups == 1 and not layer.has("weight_zero_point"):
            return ChannelMatrix(weight, scale.float().flatten())
        zeros = torch.full((outputs, groups), 128, dtype=torch.uint8)
        if layer.has("weight_zero_point"):
            stored = _by_rows(layer, "weight_zero_point", outputs)
            zeros = (stored.to(torch.int16) + 128).to(torch.uint8)
        index = _group_index(layer, "weight_g_idx", inputs, groups)

        def codes(start: int, stop: int) -> Tensor:
            return weight[start:stop].view(torch.uint8) + 128

        return GroupedMatrix(8, size, codes, scale, zeros, index)


class Fp8Layout(Layout):
    kinds = ("weight_scale", "weight_scale_inv")

    def has(self, layer: LayerTensors) -> bool:
        return layer.dtype("weight") == "F8_E4M3" and any(map(layer.has, self.kinds))

    def shape(self, layer: LayerTensors, form: StoredFormat) -> tuple[int, ...]:
        return layer.shape("weight") or ()

    def read(self, layer: LayerTensors, size: tuple[int, int], form: StoredFormat) -> Fp8Matrix:
        outputs, inputs = size
        weight = layer.read("weight", size, torch.float8_e4m3fn)
        kind = next(filter(layer.has, reversed(self.kinds)))
        scale = layer.stored(kind).float()
        if scale.numel() == 1:
            return Fp8Matrix(weight, scale.view(1, 1), size)
        if scale.ndim == 1 or (scale.shape[1] == 1 and scale.shape[0] == outputs):
            return Fp8Matrix(weight, _by_rows(layer, kind, outputs).float(), (1, inputs))
        rows, columns = form.block
        expected = -(-outputs // rows), -(-inputs // columns)
        return Fp8Matrix(weight, layer.read(kind, expected).float(), form.block)


LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "gptq": (GPTQLayout(),),
    "awq": (AWQLayout(),),
    "compressed-tensors": (PackedLayout(), Int8Layout(), Fp8Layout()),
    "fp8": (Fp8Layout(),),
}


def _two(layer: LayerTensors, kind: str) -> tuple[int, int]:
    shape = layer.shape(kind)
    if shape is None:
        raise layer.error(kind, "is missing")
    if len(shape) != 2 or not prod(shape):
        raise layer.error(kind, f"has shape {list(shape)}, not two sides")
    return shape[0], shape[1]


def _bits(layer: LayerTensors, kind: str, words: int, inputs: int) -> int:
    bits = 32 * words // inputs
    # Codes that do not fill the last word leave room in it.
    if not 2 <= bits <= 8 or -(-inputs * bits // 32) != words:
        raise layer.error(kind, f"has {words} words for {inputs} inputs: no number of bits fits")
    return bits


def _zero_points(words: Tensor, bits: int, offset: int) -> Tensor:
    """GPTQ's zero points [groups, out], uint8. Writers take the offset from whole words."""
    if offset and 32 % bits == 0:
        ones = torch.tensor(sum(1 << place for place in range(0, 32, bits)), dtype=torch.int32)
        return unpack(words + ones, bits)
    return (unpack(words, bits) + offset) & ((1 << bits) - 1)


def _by_rows(layer: LayerTensors, kind: str, outputs: int) -> Tensor:
    """Scales or zero points of a matrix, of its rows, or of their groups: [out, groups]."""
    stored = layer.stored(kind)
    if stored.numel() == 1:
        return stored.view(1, 1).expand(outputs, 1)
    if not stored.numel() or stored.numel() % outputs:
        raise layer.error(kind, f"has shape {list(stored.shape)} for {outputs} rows")
    return stored.view(outputs, -1)


def _group_index(layer: LayerTensors, kind: str, inputs: int, groups: int) -> Tensor | None:
    """int64 [in]; None where groups are in order."""
    index = layer.read(kind, (inputs,)).long() if layer.has(kind) else None
    if index is None or index[0] == -1:  # compressed-tensors' "none"
        if inputs % groups:
            raise layer.error(kind, f"is missing, and {groups} groups do not divide {inputs}")
        return None
    if index.min() < 0 or index.max() >= groups:
        raise layer.error(kind, f"names a group that is none of {groups}")
    if inputs % groups == 0 and torch.equal(index, torch.arange(inputs) // (inputs // groups)):
        return None
    return index
