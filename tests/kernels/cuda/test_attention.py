"""The Triton attention against float64; on the CPU through Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from hagane.kernels import reference
from hagane.kernels.layout import PagedLayout
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.paging import layout_of

cuda = pytest.importorskip("hagane.kernels.cuda")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCKS = 48


@settings(max_examples=7, deadline=None)
@given(
    sequences=st.lists(
        st.tuples(st.sampled_from([1, 1, 2, 5, 40]), st.integers(0, 100)), min_size=1, max_size=3
    ),
    block_size=st.sampled_from([16, 32]),
    shape=st.sampled_from([(4, 4, 16), (6, 2, 64), (8, 1, 128), (2, 2, 8), (3, 1, 40)]),
    window=st.sampled_from([None, None, 1, 20, 64]),
    sinks=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_attention(sequences, block_size, shape, window, sinks, dtype, seed):
    torch.manual_seed(seed)
    heads, kv_heads, head_dim = shape
    options = {"window": window, "sinks": torch.randn(heads, device=DEVICE) if sinks else None}
    sequences = sorted(sequences, key=lambda s: s[0] > 1)
    lengths = [new for new, _ in sequences]
    layout = layout_of(lengths, [past + new for new, past in sequences], block_size, BLOCKS, DEVICE)
    shape = (BLOCKS, block_size, kv_heads, head_dim, dtype, torch.device(DEVICE))
    ours = tuple(torch.randn_like(part) for part in cuda.allocate_cache(*shape))
    exact = tuple(part.double() for part in ours)
    tokens = sum(lengths)
    # Rows as they come out of the fused projection: apart from each other.
    qkv = torch.randn(tokens, heads + 2 * kv_heads, head_dim, device=DEVICE).to(dtype)
    q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
    result = cuda.paged_attention(q, k, v, ours, layout, **options)
    expected = reference.paged_attention(
        q.double(), k.double(), v.double(), exact, layout, **options
    )
    tolerance = 2e-5 if dtype == torch.float32 else 0.01
    torch.testing.assert_close(result.double(), expected, atol=tolerance, rtol=tolerance)
    for part, whole in zip(ours, exact, strict=True):
        assert torch.equal(part.double(), whole)


def test_rows_that_pad_a_batch_write_nothing():
    layout = layout_of([1, 1], [20, 33], 16, BLOCKS, DEVICE)
    padded = PagedLayout(
        slots=torch.nn.functional.pad(layout.slots, (0, 2)),
        block_tables=torch.nn.functional.pad(layout.block_tables, (0, 0, 0, 2)),
        starts=torch.arange(5, dtype=torch.int32, device=DEVICE),
        lengths=torch.nn.functional.pad(layout.lengths, (0, 2)),
        query_starts=(0, 1, 2, 3, 4),
        context_lengths=(20, 33, 0, 0),
        decodes=4,
        block_size=16,
    )
    cache = cuda.allocate_cache(BLOCKS, 16, 2, 32, torch.float32, torch.device(DEVICE))
    again = tuple(part.clone() for part in cache)
    q = torch.randn(4, 4, 32, device=DEVICE)
    k, v = torch.randn(2, 4, 2, 32, device=DEVICE)
    result = cuda.paged_attention(q, k, v, cache, padded, window=None)
    alone = cuda.paged_attention(q[:2], k[:2], v[:2], again, layout, window=None)
    torch.testing.assert_close(result[:2], alone)
    assert (result[2:] == 0).all()
    for part, other in zip(cache, again, strict=True):
        assert torch.equal(part, other)
