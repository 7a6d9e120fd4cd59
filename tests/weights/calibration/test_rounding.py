"""Error-compensated rounding: the codes of GPTQ, and less error than rounding to the nearest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hagane.models.formats.int4 import int4_codes, int4_scale
from hagane.weights.calibration.rounding import round_compensated

GROUP = 32


def correlated(tokens: int, features: int, seed: int) -> torch.Tensor:
    """Inputs [tokens, features] that have few directions in common."""
    generator = torch.Generator().manual_seed(5)
    directions = torch.randn(features // 4, features, generator=generator)
    drawn = torch.Generator().manual_seed(seed)
    noise = 0.3 * torch.randn(tokens, features, generator=drawn)
    return torch.randn(tokens, features // 4, generator=drawn) @ directions + noise


def weights(rows: int, features: int) -> torch.Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(3)) / 8


def gram(x: torch.Tensor) -> torch.Tensor:
    return x.t() @ x / len(x)


def dequantized(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return ((codes.float() - 8).unflatten(1, (-1, GROUP)) * scale.float()[:, :, None]).flatten(1)


def by_inverse(weight: np.ndarray, hessian: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The codes of GPTQ as its paper has it: one row, one column at a time, by H's inverse."""
    damped = hessian + 0.01 * hessian.diagonal().mean() * np.eye(len(hessian))
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    codes = np.empty_like(weight)
    for r, row in enumerate(weight.copy()):
        for j in range(len(row)):
            step = scale[r, j // GROUP]
            codes[r, j] = np.clip(np.round(row[j] / step), -8, 7)
            row[j:] -= (row[j] - codes[r, j] * step) / upper[j, j] * upper[j, j:]
    return codes


def test_the_codes_are_those_of_gptq_under_the_same_scales():
    weight, hessian = weights(24, 96), gram(correlated(500, 96, 1))
    codes, scale = round_compensated(weight, hessian, GROUP)
    expected = by_inverse(weight.double().numpy(), hessian.double().numpy(), scale.double().numpy())
    # Both round where a weight is halfway between two codes but for the last bits of a float.
    assert np.mean(codes.numpy() - 8.0 == expected) > 0.995


def test_outputs_on_other_inputs_have_less_error_than_with_the_nearest_codes():
    weight, seen, unseen = weights(64, 256), correlated(2000, 256, 1), correlated(500, 256, 2)
    groups = weight.unflatten(1, (-1, GROUP))
    scale = int4_scale(groups).float()
    nearest = (int4_codes(groups, scale) * scale).flatten(1)
    compensated = dequantized(*round_compensated(weight, gram(seen), GROUP))
    error = [(unseen @ (w - weight).t()).square().mean() for w in (nearest, compensated)]
    assert error[1] < 0.5 * error[0]


@pytest.mark.parametrize("features", [32, 160])
def test_the_same_bits_each_time(features):
    weight, hessian = weights(1100, features), gram(correlated(300, features, 1))
    codes, scale = round_compensated(weight, hessian, GROUP)
    again = round_compensated(weight, hessian, GROUP)
    assert torch.equal(codes, again[0])
    assert torch.equal(scale, again[1])
    assert codes.max() <= 15


def test_inputs_that_are_zeros_leave_weights_near_the_nearest():
    weight = weights(8, 64)
    groups = weight.unflatten(1, (-1, GROUP))
    scale = int4_scale(groups).float()
    nearest = (int4_codes(groups, scale) * scale).flatten(1)
    rounded = dequantized(*round_compensated(weight, torch.zeros(64, 64), GROUP))
    assert (rounded - weight).norm() <= 1.02 * (nearest - weight).norm()
