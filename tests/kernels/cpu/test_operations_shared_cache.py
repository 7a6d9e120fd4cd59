"""Attention whose values are the beginnings of its keys, for every instruction set here."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hagane.kernels import cpu, reference
from hagane.kernels.cpu.low_rank import NativeBank
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.cpu.test_operations_int8_cache import hadamard
from tests.support.paging import layout_of, part_of

pytestmark = [
    pytest.mark.skipif(not cpu.available(), reason="kernels not built"),
    pytest.mark.usefixtures("instruction_set"),
]
BLOCKS, CPU = 96, torch.device("cpu")
# Features of a key, and of these the ones of a value.
WIDTHS = [(96, 64), (40, 32), (72, 24), (288, 256), (64, 32)]


def dirty_cache(block_size, kv_heads, head_dim, dtype):
    """As earlier sequences left it behind: not numbers, where the dtype has such."""
    cache = cpu.allocate_cache(BLOCKS, block_size, kv_heads, head_dim, dtype, CPU, shared=True)
    cache[0].fill_(-1 if dtype == torch.int8 else math.nan)
    assert not cache[1].numel()
    return cache


def rounded(k: torch.Tensor, kept: torch.dtype, width: int) -> torch.Tensor:
    """k as the cache holds it, float64."""
    if kept != torch.int8:
        return k.to(kept).double()
    # Rotated in blocks that values consist of, with one scale for a key.
    block = (k.shape[2] | width) & -(k.shape[2] | width)
    turned = hadamard(k.unflatten(-1, (-1, block))).flatten(-2)
    scale = turned.abs().amax(-1, keepdim=True) / 127
    codes = (turned / scale).round()
    return hadamard((codes * scale).unflatten(-1, (-1, block))).flatten(-2)


@settings(max_examples=15, deadline=None)
@given(
    contexts=st.lists(st.sampled_from([1, 5, 16, 60, 255, 300]), min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 299), max_size=4),
    block_size=st.sampled_from([16, 32]),
    heads=st.sampled_from([(1, 1), (5, 1), (16, 1)]),
    widths=st.sampled_from(WIDTHS),
    window=st.sampled_from([None, None, 20]),
    dtypes=st.sampled_from(
        [
            (torch.float32, torch.float32),
            (torch.bfloat16, torch.bfloat16),
            (torch.bfloat16, torch.int8),
            (torch.float32, torch.int8),
        ]
    ),
    seed=st.integers(0, 1000),
)
def test_attention_is_that_of_values_of_their_own_in_any_chunks(
    contexts, cuts, block_size, heads, widths, window, dtypes, seed
):
    torch.manual_seed(seed)
    (dtype, kept), (head_dim, width) = dtypes, widths
    whole = layout_of(contexts, contexts, block_size, BLOCKS)
    q, k = (torch.randn(sum(contexts), n, head_dim).to(dtype) for n in heads)
    v = k[:, :, :width]
    cache = dirty_cache(block_size, heads[1], head_dim, kept)
    result = cpu.paged_attention(q, k, v, cache, whole, window=window)

    exact = rounded(k, kept, width)
    plain = reference.allocate_cache(
        BLOCKS, block_size, heads[1], head_dim, torch.float64, CPU, shared=True
    )
    expected = reference.paged_attention(
        q.double(), exact, exact[:, :, :width], plain, whole, window=window
    )
    tolerance = 2e-5 if dtypes == (torch.float32, torch.float32) else 0.02
    torch.testing.assert_close(result.double(), expected, atol=tolerance, rtol=tolerance)

    again = dirty_cache(block_size, heads[1], head_dim, kept)
    edges = sorted({0, *cuts, *(n + 1 for n in cuts), max(contexts)})
    for first, last in itertools.pairwise(edges):
        rows, layout = part_of(whole, first, last)
        if len(rows):
            piece = cpu.paged_attention(q[rows], k[rows], v[rows], again, layout, window=window)
            assert torch.equal(piece, result[rows])


def test_keys_and_results_that_do_not_fit_are_refused():
    k = torch.randn(16, 1, 32)
    layout = layout_of([16], [16], 16, BLOCKS)
    cache = dirty_cache(16, 1, 32, torch.float32)
    with pytest.raises(ValueError, match="k and v"):
        cpu.paged_attention(k, k, k.repeat(1, 1, 2), cache, layout, window=None)
    own = cpu.allocate_cache(BLOCKS, 16, 1, 32, torch.float32, CPU)
    with pytest.raises(ValueError, match="k and v"):
        cpu.paged_attention(k, k, k[:, :, :16], own, layout, window=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_have_matrices_of_their_own(dtype):
    torch.manual_seed(2)
    matrices = [torch.randn(24, 40).to(dtype) for _ in range(3)]
    x = torch.randn(7, 3 * 48).to(dtype)
    weights = [cpu.pack_dense(m) for m in matrices]
    out = cpu.head_products(x, weights, 32)
    assert torch.equal(cpu.head_products(x[4:5], weights, 32)[:, :24], out[4:5, :24])
    # With changes, of which no row has one: the same bits.
    changes = [NativeBank(weight).handle for weight in weights], torch.full((7,), -1).int()
    apart = cpu.head_products(x, weights, 32, changes)
    with pytest.raises(ValueError, match="a head's features"):
        cpu.head_products(x, weights, 20)
    for head, matrix in enumerate(matrices):
        expected = x[:, 48 * head : 48 * head + 40].double() @ matrix.double().t()
        assert torch.equal(*(y[:, 32 * head : 32 * head + 24] for y in (out, apart)))
        got = out[:, 32 * head : 32 * head + 24].double()
        torch.testing.assert_close(
            got, expected, atol=0.05 if dtype == torch.bfloat16 else 1e-4, rtol=0.02
        )
