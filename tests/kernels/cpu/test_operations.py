"""Row-wise kernels against plain references, for every instruction set of this machine."""

from __future__ import annotations

import pytest
import torch
from hagane.kernels import cpu, reference

pytestmark = [
    pytest.mark.skipif(not cpu.available(), reason="kernels not built"),
    pytest.mark.usefixtures("instruction_set"),
]
DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [16, 30, 128, 1000])
def test_row_operations(dtype, features):
    torch.manual_seed(3)
    tolerance = (
        {"atol": 2e-5, "rtol": 2e-5} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.01}
    )
    x, weight = torch.randn(40, features).to(dtype) * 3, torch.randn(features).to(dtype)
    torch.testing.assert_close(
        cpu.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), **tolerance
    )
    x = (torch.randn(40, 2 * features) * 30).to(dtype)
    torch.testing.assert_close(cpu.silu_and_mul(x), reference.silu_and_mul(x), **tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [8, 64, 96, 128])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("centered", [False, True])
def test_rotation(dtype, head_dim, normed, centered):
    torch.manual_seed(4)
    heads, kv_heads, tokens = 6, 2, 11
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim).to(dtype)
    angles = torch.rand(tokens, head_dim // 2) * 6
    norms = (torch.rand(head_dim).to(dtype), torch.rand(head_dim).to(dtype)) if normed else None
    center = torch.randn(kv_heads, head_dim) if centered else None
    shape = {"heads": heads, "kv_heads": kv_heads, "norms": norms, "eps": 1e-6, "center": center}
    expected = reference.apply_rope(qkv.clone(), angles.cos(), angles.sin(), **shape)
    result = cpu.apply_rope(qkv.clone(), angles.cos(), angles.sin(), **shape)
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    for ours, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("tokens", [1, 3, 200])
def test_rope_tables(tokens):
    positions = torch.randint(0, 40_000, (tokens,))
    frequencies = 10_000 ** -torch.linspace(0, 1, 20)
    for ours, theirs in zip(
        cpu.rope_tables(positions, frequencies, 1.5),
        reference.rope_tables(positions, frequencies, 1.5),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_of_latent_attention(dtype, interleaved):
    torch.manual_seed(1)
    tokens, heads, plain, turned, values = 5, 3, 24, 8, 16
    # Queries and the shared key as they come out of one projection: apart from each other.
    parts = torch.randn(tokens, heads * (plain + turned) + turned).to(dtype)
    kv = torch.randn(tokens, heads * (plain + values)).to(dtype)
    cos, sin = reference.rope_tables(torch.arange(tokens), torch.rand(turned // 2), 1.2)
    q, shared = parts.split((heads * (plain + turned), turned), dim=1)
    rotation, options = (cos, sin), {"heads": heads, "interleaved": interleaved}
    expected = reference.latent_heads(q, kv, shared, *rotation, **options)
    for got, part in zip(
        cpu.latent_heads(q, kv, shared, *rotation, **options), expected, strict=True
    ):
        torch.testing.assert_close(got, part)
    whole = expected[1].flatten(1)
    narrow = cpu.narrow_heads(whole, heads, values)
    assert torch.equal(narrow, reference.narrow_heads(whole, heads, values))
    with pytest.raises(ValueError, match="heads"):
        cpu.narrow_heads(whole, 5, values)
    # Over latents: the same ends, behind room for something else.
    rank = 20
    latent, wide = torch.randn(tokens, rank).to(dtype), torch.randn(tokens, heads * 28).to(dtype)
    before = wide.view(tokens, heads, 28)[..., :rank].clone()
    q = parts.split((heads * (plain + turned), turned), dim=1)[0].clone()
    ends = reference.latent_heads(q.clone(), kv, shared, *rotation, **options)[0][..., plain:]
    queries, keys = cpu.latent_keys(q, wide, latent, shared, *rotation, **options)
    torch.testing.assert_close(queries, torch.cat((before, ends), dim=-1))
    key = torch.cat((latent, expected[1][:, 0, plain:]), dim=1)
    torch.testing.assert_close(keys[:, 0], key)
