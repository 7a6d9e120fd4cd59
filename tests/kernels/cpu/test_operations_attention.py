"""Attention over a paged cache of floats, for every instruction set of this machine."""

from __future__ import annotations

import pytest
import torch
from hagane.kernels import cpu, reference
from hagane.kernels.layout import PagedLayout
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.paging import layout_of

pytestmark = [
    pytest.mark.skipif(not cpu.available(), reason="kernels not built"),
    pytest.mark.usefixtures("instruction_set"),
]
DTYPES = (torch.float32, torch.bfloat16)


@settings(max_examples=25, deadline=None)
@given(
    sequences=st.lists(
        st.tuples(st.sampled_from([1, 1, 2, 5, 16, 70]), st.integers(0, 150)),
        min_size=1,
        max_size=4,
    ),
    block_size=st.sampled_from([16, 32, 64]),
    shape=st.sampled_from([(4, 4, 16), (6, 2, 64), (8, 1, 128), (2, 2, 8), (3, 1, 40)]),
    window=st.sampled_from([None, None, 1, 20, 64, 100]),
    sinks=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_attention(sequences, block_size, shape, window, sinks, dtype, seed):
    torch.manual_seed(seed)
    heads, kv_heads, head_dim = shape
    options = {"window": window, "sinks": torch.randn(heads) * 2 if sinks else None}
    sequences = sorted(sequences, key=lambda s: s[0] > 1)
    caches = [
        ops.allocate_cache(64, block_size, kv_heads, head_dim, dtype, torch.device("cpu"))
        for ops in (cpu, reference)
    ]

    def paged_attention(layout: PagedLayout, q, k, v):
        pairs = zip((cpu, reference), caches, strict=True)
        return [ops.paged_attention(q, k, v, cache, layout, **options) for ops, cache in pairs]

    # The past first, then the new tokens that look at it.
    pasts = [past for _, past in sequences]
    lengths = [new for new, _ in sequences]
    contexts = [past + new for new, past in sequences]
    whole = layout_of(contexts, contexts, block_size, 64)
    total = sum(contexts)
    q, k, v = (torch.randn(total, n, head_dim).to(dtype) for n in (heads, kv_heads, kv_heads))
    prefill, expected = paged_attention(whole, q, k, v)
    tolerance = 2e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(prefill, expected, atol=tolerance, rtol=tolerance)

    rows, starts = [], [0]
    for index, (past, new) in enumerate(zip(pasts, lengths, strict=True)):
        begin = whole.query_starts[index]
        rows += range(begin + past, begin + past + new)
        starts.append(starts[-1] + new)
    again = PagedLayout(
        slots=whole.slots[rows], block_tables=whole.block_tables,
        starts=torch.tensor(starts, dtype=torch.int32), lengths=whole.lengths,
        query_starts=tuple(starts), context_lengths=whole.context_lengths,
        decodes=sum(n == 1 for n in lengths), block_size=block_size,
    )  # fmt: skip
    decoded, _ = paged_attention(again, q[rows], k[rows], v[rows])
    assert torch.equal(decoded, prefill[rows])
