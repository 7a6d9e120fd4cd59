"""Attention over keys and values in int8, on every instruction set of this machine."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hagane.kernels import cpu, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.paging import layout_of, part_of

pytestmark = [
    pytest.mark.skipif(not cpu.available(), reason="kernels not built"),
    pytest.mark.usefixtures("instruction_set"),
]
BLOCKS = 192
CPU = torch.device("cpu")


def dirty_cache(block_size: int, kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """As earlier sequences left it behind: codes, and scales that are not numbers."""
    cache = cpu.allocate_cache(BLOCKS, block_size, kv_heads, head_dim, torch.int8, CPU)
    for part in cache:
        part.fill_(-1)
    return cache


def hadamard(x: Tensor) -> Tensor:
    """x [..., head_dim] times Sylvester's matrix, in blocks of the largest power of two."""
    size = x.shape[-1] & -x.shape[-1]
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    return (x.double().unflatten(-1, (-1, size)) @ matrix / size**0.5).flatten(-2)


def dequantized(
    cache: tuple[Tensor, Tensor], block_size: int, kv_heads: int, head_dim: int
) -> tuple[Tensor, Tensor]:
    """Keys and values in float64 [tokens of all blocks, kv_heads, head_dim], by cpu/ops.h."""
    keys, values = cache
    tokens, padded = kv_heads * block_size, -(-head_dim // 16) * 16
    key_codes = keys[:, : tokens * head_dim].reshape(BLOCKS, kv_heads, -1, head_dim // 2, 16, 2)
    value_codes = values[:, : tokens * padded].reshape(BLOCKS, kv_heads, -1, padded, 2)
    codes = (
        key_codes.permute(0, 2, 4, 1, 3, 5).reshape(-1, kv_heads, head_dim),
        value_codes.permute(0, 2, 4, 1, 3).reshape(-1, kv_heads, padded)[:, :, :head_dim],
    )
    scales = (
        part[:, -4 * tokens :].view(torch.float32).unflatten(1, (kv_heads, -1)).transpose(1, 2)
        for part in cache
    )
    pairs = zip(codes, scales, strict=True)
    turned, plain = (c.double() * scale.reshape(-1, kv_heads, 1) for c, scale in pairs)
    return hadamard(turned), plain


def rows_of(
    total: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Queries, keys and values; those of some tokens are a hundred times as large as of others."""
    size = 10 ** (2 * torch.rand(total, 1, 1) - 1)
    return tuple(
        (torch.randn(total, n, head_dim) * factor).to(dtype)
        for n, factor in ((heads, 0.5), (kv_heads, 1.0), (kv_heads, size))
    )


@settings(max_examples=20, deadline=None)
@given(
    contexts=st.lists(st.sampled_from([1, 5, 16, 60, 255, 256, 300, 530]), min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 529), max_size=6),
    block_size=st.sampled_from([16, 32]),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 8),
    head_dim=st.sampled_from([8, 32, 40, 64, 80, 96, 128, 256]),
    window=st.sampled_from([None, None, 1, 20, 64, 300]),
    dtype=st.sampled_from([torch.bfloat16, torch.bfloat16, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_attention_is_that_of_the_dequantized_cache_in_any_chunks(
    instruction_set, contexts, cuts, block_size, kv_heads, group, head_dim, window, dtype, seed
):
    torch.manual_seed(seed)
    shape = group * kv_heads, kv_heads, head_dim
    whole = layout_of(contexts, contexts, block_size, BLOCKS)
    q, k, v = rows_of(sum(contexts), *shape, dtype)
    cache = dirty_cache(block_size, kv_heads, head_dim)
    result = cpu.paged_attention(q, k, v, cache, whole, window=window)

    kept = [part[whole.slots] for part in dequantized(cache, block_size, kv_heads, head_dim)]
    for ours, exact in ((hadamard(kept[0]), hadamard(k)), (kept[1], v.double())):
        step = exact.abs().amax(-1, keepdim=True) / 127
        assert ((ours - exact).abs() <= 0.501 * step).all()
    plain = reference.allocate_cache(BLOCKS, block_size, kv_heads, head_dim, torch.float64, CPU)
    expected = reference.paged_attention(q.double(), *kept, plain, whole, window=window)
    # Rounding to bfloat16 takes most of what is allowed, or else queries and weights of 16 bits do.
    relative = 0.004 if dtype == torch.bfloat16 else 0.0
    integers = instruction_set in ("avx512", "avx512_bf16", "amx") and head_dim % 32 == 0
    absolute = 4e-4 if integers or dtype == torch.bfloat16 else 1e-5
    largest = expected.abs().amax(-1, keepdim=True)
    assert ((result - expected).abs() <= relative * expected.abs() + absolute * largest).all()

    # The same tokens one part of each sequence after the other, down to single ones.
    again = dirty_cache(block_size, kv_heads, head_dim)
    edges = sorted({0, *cuts, *(n + 1 for n in cuts), max(contexts)})
    for first, last in itertools.pairwise(edges):
        rows, layout = part_of(whole, first, last)
        if len(rows):
            piece = cpu.paged_attention(q[rows], k[rows], v[rows], again, layout, window=window)
            assert torch.equal(piece, result[rows])


@pytest.mark.parametrize("group", [1, 2, 8])
def test_a_value_that_is_not_a_number_spoils_who_sees_it_and_no_other_sequence(group):
    torch.manual_seed(group)
    q, k, v = rows_of(320, group, 1, 64, torch.bfloat16)
    layout = layout_of([300, 20], [300, 20], 16, BLOCKS)
    clean = cpu.paged_attention(q, k, v, dirty_cache(16, 1, 64), layout, window=None)
    v[270, 0, 3] = math.nan
    spoiled = cpu.paged_attention(q, k, v, dirty_cache(16, 1, 64), layout, window=None)
    assert spoiled[270:300].isnan().all()
    assert torch.equal(spoiled[300:], clean[300:])


def test_decoding_sequences_do_not_see_each_other():
    """Enough of them for a task to have several heads, of lengths around those of spans."""
    torch.manual_seed(0)
    contexts = [1, 15, 16, 17, 255, 256, 257, 300, 511, 513, 64, 100]
    shape = 6, 3, 64
    whole = layout_of(contexts, contexts, 16, BLOCKS)
    q, k, v = rows_of(sum(contexts), *shape, torch.bfloat16)
    cache = dirty_cache(16, 3, 64)
    cpu.paged_attention(q, k, v, cache, whole, window=None)
    last = torch.tensor(whole.query_starts[1:]) - 1
    ones = tuple(range(len(contexts) + 1))
    together = replace(
        whole, slots=whole.slots[last], starts=torch.tensor(ones, dtype=torch.int32),
        query_starts=ones, decodes=len(contexts),
    )  # fmt: skip
    result = cpu.paged_attention(q[last], k[last], v[last], cache, together, window=None)
    for row, index in enumerate(last.tolist()):
        one = replace(
            together, slots=whole.slots[index : index + 1], starts=together.starts[:2],
            block_tables=whole.block_tables[row : row + 1], lengths=whole.lengths[row : row + 1],
            query_starts=(0, 1), context_lengths=(contexts[row],), decodes=1,
        )  # fmt: skip
        rows = slice(index, index + 1)
        alone = cpu.paged_attention(q[rows], k[rows], v[rows], cache, one, window=None)
        assert torch.equal(alone[0], result[row])
