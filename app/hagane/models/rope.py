"""Rotary position embeddings (Su et al., 2021, https://arxiv.org/abs/2104.09864).

Scalings: linear (position interpolation, Chen et al., 2023), llama3 (Llama 3.1's frequency bands),
yarn (Peng et al., 2023, https://arxiv.org/abs/2309.00071) and longrope (Ding et al., 2024,
https://arxiv.org/abs/2402.13753).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from hagane.kernels import reference
from hagane.kernels.backend import Operations
from hagane.models.rope_parameters import RopeParameters

# Later positions turn slow features a little further than their mean over these.
_MEAN_POSITIONS = 4096


class RotaryEmbedding(nn.Module):
    """Computes the cosines and sines that one forward pass shares between its layers."""

    inverse_frequencies: Tensor

    def __init__(self, parameters: RopeParameters, operations: Operations) -> None:
        super().__init__()
        self.operations = operations
        self.magnitude = parameters.magnitude()
        # Computed on the CPU even while the model is built on the meta device.
        with torch.device("cpu"):
            frequencies = inverse_frequencies(parameters)
        self.register_buffer("inverse_frequencies", frequencies, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, each float32 [tokens, rotated / 2], for int64 positions [tokens]."""
        return self.operations.rope_tables(positions, self.inverse_frequencies, self.magnitude)


@lru_cache(maxsize=8)  # all layers of a model have one or two
def mean_rotation(parameters: RopeParameters) -> tuple[Tensor, Tensor]:
    """The mean cos and sin of the first positions, each float32 [1, rotated / 2]."""
    rotary = RotaryEmbedding(parameters, reference)
    cos, sin = rotary(torch.arange(_MEAN_POSITIONS))
    return cos.mean(0, keepdim=True), sin.mean(0, keepdim=True)


def inverse_frequencies(parameters: RopeParameters) -> Tensor:
    """Angle per position of every pair of features: float32 [rotated / 2]."""
    exponents = torch.arange(0, parameters.rotated, 2, dtype=torch.float32) / parameters.rotated
    plain = 1.0 / parameters.theta**exponents
    if parameters.kind == "linear":
        return plain / parameters.factor
    if parameters.kind == "longrope":
        return plain / torch.tensor(
            parameters.long_factor if parameters.long else parameters.short_factor
        )
    if parameters.kind == "llama3":
        return _llama3(parameters, plain)
    if parameters.kind == "yarn":
        return _yarn(parameters, plain)
    return plain


def _llama3(parameters: RopeParameters, plain: Tensor) -> Tensor:
    wavelengths = 2 * math.pi / plain
    rotations = parameters.original_context / wavelengths
    band = parameters.high_freq_factor - parameters.low_freq_factor
    keep = ((rotations - parameters.low_freq_factor) / band).clamp(0, 1)
    return (1 - keep) * plain / parameters.factor + keep * plain


def _yarn(parameters: RopeParameters, plain: Tensor) -> Tensor:
    def dimension(rotations: float) -> float:
        periods = parameters.original_context / (rotations * 2 * math.pi)
        return parameters.rotated * math.log(periods) / (2 * math.log(parameters.theta))

    low, high = dimension(parameters.beta_fast), dimension(parameters.beta_slow)
    if parameters.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, parameters.rotated - 1)
    # A ramp of no width would divide by zero.
    width = (high - low) or 0.001
    pairs = torch.arange(parameters.rotated // 2, dtype=torch.float32)
    interpolate = ((pairs - low) / width).clamp(0, 1)
    return interpolate * plain / parameters.factor + (1 - interpolate) * plain
