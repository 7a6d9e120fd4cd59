"""GGUF's block formats, decoded into one common form: integer codes in groups with a scale.

    weight = scale * code (+ minimum)

A group is 16 or 32 consecutive inputs of one row. All block formats of ggml fit: some spread the
bits of their codes and scales over a block, or look codes up in a table, which decoding undoes.
Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hagane.kernels.cpu import GroupedForm
from hagane.weights.sources.grouped_rows import Groups

# Code points of the non-linear 4-bit types.
_IQ4_CODES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# Twice the values of e2m1 (Rouhani et al., 2023, arXiv:2310.10537); the scale is halved for it.
_E2M1_CODES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


Decoder = Callable[[Tensor], Groups]


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at byte `at` of each block, as float32 [n, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor, run: int) -> Tensor:
    """Codes 0 to 15: `run` bytes hold `run` codes in their low halves, then `run` in the high."""
    runs = packed.unflatten(1, (-1, run))
    return torch.stack((runs & 15, runs >> 4), dim=2).flatten(1)


def _bits(packed: Tensor, run: int, width: int) -> Tensor:
    """Codes of `width` bits: `run` bytes hold `run` codes in their lowest bits, and so on up."""
    runs = packed.unflatten(1, (-1, run))
    planes = [(runs >> shift) & ((1 << width) - 1) for shift in range(0, 8, width)]
    return torch.stack(planes, dim=2).flatten(1)


def _fifth_bits(packed: Tensor) -> Tensor:
    """32 single bits of each block's 4 bytes, the lowest first, in place 4 of a code."""
    planes = [(packed >> shift) & 1 for shift in range(8)]
    return torch.stack(planes, dim=2).flatten(1) << 4


def _looked_up(codes: Tensor, table: tuple[int, ...]) -> Tensor:
    return torch.tensor(table, dtype=torch.int8)[codes.int()]


def _q4_0(blocks: Tensor) -> Groups:
    return Groups(_nibbles(blocks[:, 2:], 16).view(torch.int8) - 8, _half(blocks, 0))


def _q4_1(blocks: Tensor) -> Groups:
    codes = _nibbles(blocks[:, 4:], 16).view(torch.int8)
    return Groups(codes, _half(blocks, 0), _half(blocks, 2))


def _q5_0(blocks: Tensor) -> Groups:
    codes = _nibbles(blocks[:, 6:], 16) | _fifth_bits(blocks[:, 2:6])
    return Groups(codes.view(torch.int8) - 16, _half(blocks, 0))


def _q5_1(blocks: Tensor) -> Groups:
    codes = _nibbles(blocks[:, 8:], 16) | _fifth_bits(blocks[:, 4:8])
    return Groups(codes.view(torch.int8), _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: Tensor) -> Groups:
    return Groups(blocks[:, 2:].contiguous().view(torch.int8), _half(blocks, 0))


def _q2_k(blocks: Tensor) -> Groups:
    packed = blocks[:, :16]
    scale = _half(blocks, 80) * (packed & 15).float()
    minimum = _half(blocks, 82) * (packed >> 4).float()
    return Groups(_bits(blocks[:, 16:80], 32, 2).view(torch.int8), scale, -minimum)


def _q3_k(blocks: Tensor) -> Groups:
    packed = blocks[:, 96:108]
    # 16 scales of 6 bits: the low four in 8 bytes, the high two in 4.
    low = torch.cat((packed[:, :8] & 15, packed[:, :8] >> 4), dim=1)
    high = _bits(packed[:, 8:], 4, 2)
    scale = _half(blocks, 108) * ((low | (high << 4)).view(torch.int8) - 32).float()
    # A bit of the mask that is not set takes 4 away.
    mask = _bits(blocks[:, :32], 32, 1) << 2
    return Groups((_bits(blocks[:, 32:96], 32, 2) + mask).view(torch.int8) - 4, scale)


def _scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """8 scales and 8 minima of 6 bits each, in the 12 bytes after two float16."""
    first, second, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = torch.cat((first & 63, (rest & 15) | ((first >> 2) & 48)), dim=1)
    minimum = torch.cat((second & 63, (rest >> 4) | ((second >> 2) & 48)), dim=1)
    return _half(blocks, 0) * scale.float(), _half(blocks, 2) * minimum.float()


def _q4_k(blocks: Tensor) -> Groups:
    scale, minimum = _scales_and_minima(blocks)
    return Groups(_nibbles(blocks[:, 16:], 32).view(torch.int8), scale, -minimum)


def _q5_k(blocks: Tensor) -> Groups:
    scale, minimum = _scales_and_minima(blocks)
    codes = _nibbles(blocks[:, 48:], 32) | (_bits(blocks[:, 16:48], 32, 1) << 4)
    return Groups(codes.view(torch.int8), scale, -minimum)


def _q6_k(blocks: Tensor) -> Groups:
    codes = _nibbles(blocks[:, :128], 64) | (_bits(blocks[:, 128:192], 32, 2) << 4)
    scale = _half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8).float()
    return Groups(codes.view(torch.int8) - 32, scale)


def _iq4_nl(blocks: Tensor) -> Groups:
    return Groups(_looked_up(_nibbles(blocks[:, 2:], 16), _IQ4_CODES), _half(blocks, 0))


def _iq4_xs(blocks: Tensor) -> Groups:
    # 8 scales of 6 bits: the high two in 2 bytes, the low four in 4.
    high = torch.stack([(blocks[:, 2:4] >> shift) & 3 for shift in (0, 2, 4, 6)], dim=2).flatten(1)
    low = torch.stack((blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4), dim=2).flatten(1)
    scale = _half(blocks, 0) * ((low | (high << 4)).view(torch.int8) - 32).float()
    return Groups(_looked_up(_nibbles(blocks[:, 8:], 16), _IQ4_CODES), scale)


def _mxfp4(blocks: Tensor) -> Groups:
    # The scale's byte is the exponent of a float32, one lower for the doubled codes; the two
    # lowest exponents have no normal float to stand for them.
    exponent = blocks[:, :1].to(torch.int32)
    bits = torch.where(exponent < 2, 0x00200000 << exponent, (exponent - 1) << 23)
    return Groups(_looked_up(_nibbles(blocks[:, 1:], 16), _E2M1_CODES), bits.view(torch.float32))


DECODERS: dict[str, Decoder] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}
# Types whose elements are floats by themselves.
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# How kernels hold the block types: points of a table in as many bits as they need to be exact.
FORMS = {
    "Q4_0": GroupedForm(4, 32, 8, False),
    "Q4_1": GroupedForm(4, 32, 0, True),
    "Q5_0": GroupedForm(5, 32, 16, False),
    "Q5_1": GroupedForm(5, 32, 0, True),
    "Q8_0": GroupedForm(8, 32, 128, False),
    "Q2_K": GroupedForm(4, 16, 0, True),
    "Q3_K": GroupedForm(4, 16, 4, False),
    "Q4_K": GroupedForm(4, 32, 0, True),
    "Q5_K": GroupedForm(5, 32, 0, True),
    "Q6_K": GroupedForm(6, 16, 32, False),
    "IQ4_NL": GroupedForm(8, 32, 128, False),
    "IQ4_XS": GroupedForm(8, 32, 128, False),
    "MXFP4": GroupedForm(5, 32, 16, False),
}
