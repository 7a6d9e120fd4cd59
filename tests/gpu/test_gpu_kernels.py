"""The Triton kernels in the sizes that they are made for, in bfloat16, against float64.

Small shapes of every kind are in tests/kernels/cuda, which a device runs as well.
"""

from __future__ import annotations

import pytest
import torch
from hagane.kernels import reference
from hagane.kernels.layout import PagedLayout
from hagane.kernels.sampling import SamplingTensors
from hagane.kernels.sampling import sample as sample_by_sorting
from hagane.models.formats.fp8 import Fp8
from hagane.models.formats.int4 import Int4
from hagane.models.formats.int8 import quantize_int8

cuda = pytest.importorskip("hagane.kernels.cuda")
linear = pytest.importorskip("hagane.kernels.cuda.linear")
DEVICE = torch.device("cuda")


def paged(lengths: list[int], contexts: list[int], block_size: int, blocks: int) -> PagedLayout:
    order = torch.randperm(blocks).int()
    width = max(-(-context // block_size) for context in contexts)
    tables = torch.zeros(len(contexts), width, dtype=torch.int32)
    slots, used = [], 0
    for row, (length, context) in enumerate(zip(lengths, contexts, strict=True)):
        count = -(-context // block_size)
        tables[row, :count] = order[used : used + count]
        used += count
        positions = torch.arange(context - length, context)
        slots.append(tables[row][positions // block_size] * block_size + positions % block_size)
    starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    return PagedLayout(
        slots=torch.cat(slots).long().to(DEVICE),
        block_tables=tables.to(DEVICE),
        starts=torch.tensor(starts, dtype=torch.int32, device=DEVICE),
        lengths=torch.tensor(contexts, dtype=torch.int32, device=DEVICE),
        query_starts=tuple(starts),
        context_lengths=tuple(contexts),
        decodes=sum(length == 1 for length in lengths),
        block_size=block_size,
    )


@pytest.mark.parametrize("shape", [(32, 8, 128), (16, 8, 128), (14, 2, 64), (32, 32, 96)])
@pytest.mark.parametrize("window", [None, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_over_long_contexts(shape, window, dtype):
    torch.manual_seed(0)
    heads, kv_heads, head_dim = shape
    lengths, contexts = [1, 1, 1, 300, 1024], [1, 777, 5000, 300, 4000]
    layout = paged(lengths, contexts, 16, 700)
    allocation = (700, 16, kv_heads, head_dim, dtype, DEVICE)
    ours = tuple(torch.randn_like(part) for part in cuda.allocate_cache(*allocation))
    exact = tuple(part.double() for part in ours)
    qkv = torch.randn(sum(lengths), heads + 2 * kv_heads, head_dim, device=DEVICE).to(dtype)
    q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
    result = cuda.paged_attention(q, k, v, ours, layout, window=window)
    expected = reference.paged_attention(
        q.double(), k.double(), v.double(), exact, layout, window=window
    )
    tolerance = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(result.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("rows", [1, 2, 16, 48, 64, 65, 256, 1000])
@pytest.mark.parametrize(("outputs", "inputs"), [(6144, 4096), (4096, 14336), (1000, 1024)])
def test_linear_layers_of_real_sizes(rows, outputs, inputs):
    torch.manual_seed(1)
    weight = torch.randn(outputs, inputs, device=DEVICE) / inputs**0.5
    x = torch.randn(rows, inputs, device=DEVICE, dtype=torch.bfloat16)
    residual = torch.randn(rows, outputs, device=DEVICE, dtype=torch.bfloat16)
    narrow = weight.bfloat16()
    codes, scale = quantize_int8(weight).values()
    layer = Int4(inputs, outputs, False, 64)
    layer.weight_int4, layer.scale = layer.quantize(weight).values()
    stored = (layer.weight_int4, layer.scale)
    floats, factor = Fp8(inputs, outputs, False).quantize(weight).values()
    cases = (
        (linear.dense(x, narrow, None, residual), narrow.double()),
        (linear.int8(x, codes, scale, None, residual), codes.double() * scale.double()[:, None]),
        (linear.int4(x, *stored, None, residual), layer.matrix(torch.float64)),
        (linear.fp8(x, floats, factor, None, residual), floats.double() * factor.double()[:, None]),
    )
    for result, exact in cases:
        expected = x.double() @ exact.T + residual.double()
        # Results are about 1 in size: bfloat16's rounding, and that of 8-bit inputs (e4m3: 6%).
        tolerance = 0.2 if result is cases[-1][0] and rows > 64 else 0.08
        torch.testing.assert_close(result.double(), expected, atol=tolerance, rtol=0.02)


def test_draws_of_a_large_batch_equal_those_of_a_sort():
    torch.manual_seed(2)
    rows, vocab = 256, 128_256
    logits = torch.randn(rows, vocab, device=DEVICE) * 3
    tensors = SamplingTensors(
        temperature=torch.rand(rows).double() + 0.3,
        top_p=torch.where(torch.arange(rows) % 2 == 0, 0.9, 1.0).double(),
        min_p=torch.where(torch.arange(rows) % 3 == 0, 0.05, 0.0).double(),
        top_k=torch.where(torch.arange(rows) % 5 == 0, 40, 0),
        uniform=torch.rand(rows).double(),
    )
    ours, theirs = cuda.sample(logits, tensors), sample_by_sorting(logits, tensors)
    # A sample between two tokens may go either way: sums are float32.
    assert (ours == theirs).float().mean() > 0.97
