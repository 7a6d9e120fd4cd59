"""The Triton kernels of rows against float64; on the CPU through Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from hagane.kernels import reference

cuda = pytest.importorskip("hagane.kernels.cuda")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def close(ours: torch.Tensor, exact: torch.Tensor) -> None:
    tolerance = TOLERANCES[ours.dtype]
    torch.testing.assert_close(ours.double(), exact, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("features", [1, 30, 128, 1000])
def test_norms_and_swiglu(dtype, features):
    torch.manual_seed(features)
    x = (torch.randn(7, features, device=DEVICE) * 3).to(dtype)
    weight = torch.randn(features, device=DEVICE).to(dtype)
    wide = x.double()
    scale = torch.rsqrt(wide.square().mean(1, keepdim=True) + 1e-5)
    close(cuda.rms_norm(x, weight, 1e-5), wide * scale * weight.double())
    gate_up = torch.randn(5, 2 * features, device=DEVICE).to(dtype)
    gate, up = gate_up.double().chunk(2, dim=1)
    close(cuda.silu_and_mul(gate_up), torch.nn.functional.silu(gate) * up)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("head_dim", [8, 64, 96])
@pytest.mark.parametrize("normed", [False, True])
def test_rotation(dtype, head_dim, normed):
    torch.manual_seed(head_dim)
    heads, kv_heads, tokens = 7, 2, 3
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim, device=DEVICE).to(dtype)
    angles = torch.rand(tokens, head_dim // 2, device=DEVICE) * 6
    cos, sin = angles.cos(), angles.sin()
    norms = tuple(torch.rand(2, head_dim, device=DEVICE).to(dtype)) if normed else None
    wide = None if norms is None else tuple(norm.double() for norm in norms)
    center = torch.randn(kv_heads, head_dim, device=DEVICE)
    shape = {"heads": heads, "kv_heads": kv_heads, "eps": 1e-6, "center": center}
    exact = reference.apply_rope(qkv.double(), cos, sin, norms=wide, **shape)
    for ours, theirs in zip(
        cuda.apply_rope(qkv.clone(), cos, sin, norms=norms, **shape), exact, strict=True
    ):
        close(ours, theirs.double())
