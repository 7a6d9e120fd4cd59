"""The C++ kernels against plain references, for every instruction set of this machine."""

from __future__ import annotations

import math

import pytest
import torch
from hagane.kernels import cpu, reference
from hagane.kernels.layout import PagedLayout
from hagane.kernels.sampling import SamplingTensors
from hagane.models.config import Quantization
from hagane.models.formats.dense import Dense
from hagane.models.formats.int4 import Int4, unpack_int4
from hagane.models.formats.int8 import Int8, Int8Embedding, quantize_int8
from hagane.models.linear import make_embedding, make_linear
from hagane.models.serving_layers import for_serving
from hagane.system.machine import usable_cores
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.paging import SETS, layout_of

pytestmark = pytest.mark.skipif(not cpu.available(), reason="kernels not built")
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(scope="module", params=SETS, autouse=True)
def instruction_set(request):
    """Two threads, so that work in parallel shows."""
    cores = usable_cores()
    try:
        cpu.start(min(2, len(cores)), request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    cpu.start(1)


def make(kind: str, out: int, inputs: int, group: int, dtype: torch.dtype, bias: bool):
    """A layer in its stored form and its weights as float64."""
    weight = torch.randn(out, inputs) * torch.rand(out, 1)
    if kind == "dense":
        layer = Dense(inputs, out, bias)
        layer.weight.data = weight.to(dtype)
        exact = layer.weight.double()
    else:
        layer = Int8(inputs, out, bias) if kind == "int8" else Int4(inputs, out, bias, group)
        for name, tensor in layer.quantize(weight).items():
            setattr(layer, name, tensor)
        if kind == "int8":
            exact = layer.weight_int8.double() * layer.scale.double()[:, None]
        else:
            codes = unpack_int4(layer.weight_int4).double() - 8
            exact = (codes.unflatten(1, (-1, group)) * layer.scale.double()[:, :, None]).flatten(1)
    if bias:
        layer.bias.data = torch.randn(out).to(dtype)
    return layer, exact.detach()


def as_kernel_sees(x: torch.Tensor, kind: str) -> torch.Tensor:
    """x with its activations quantized per token."""
    wide = x.float()
    if kind == "dense":
        return wide.double()
    top = wide.abs().amax(1, keepdim=True)
    inverse = torch.where(top > 1e-30, 127 / top, 0.0)
    return ((wide * inverse).round().double()) * (top / 127).double()


@pytest.mark.parametrize("kind", ["dense", "int8", "int4"])
@settings(max_examples=40, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 50]),
    out=st.sampled_from([1, 15, 16, 17, 48, 100]),
    units=st.integers(1, 6),
    group=st.sampled_from([32, 64, 128]),
    odd=st.integers(0, 30),
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_linear(kind, rows, out, units, group, odd, dtype, bias, seed):
    torch.manual_seed(seed)
    inputs = units * group if kind == "int4" else units * 32 + odd + 1
    layer, exact = make(kind, out, inputs, group, dtype, bias)
    packed = for_serving(layer, cpu, dtype)
    x = torch.randn(rows, inputs + 3).to(dtype)[:, :inputs]  # rows that are not contiguous
    result = cpu.linear(x, packed.weight, torch.float32)
    expected = as_kernel_sees(x, kind) @ exact.T
    if bias:
        expected += layer.bias.double()
    slack = 1e-6 * math.sqrt(inputs) * (as_kernel_sees(x, kind).abs() @ exact.abs().T) + 1e-6
    if kind != "dense":
        # Activations on the edge between two codes may fall either way.
        step = x.double().abs().amax(1, keepdim=True) / 127
        edges = ((x.double() / step).remainder(1) - 0.5).abs() < 1e-4
        slack += edges.sum(1, keepdim=True) * step * exact.abs().amax(1)
    assert ((result - expected).abs() <= slack).all()
    residual = torch.randn(rows, out)
    added = cpu.linear(x, packed.weight, torch.float32, residual)
    torch.testing.assert_close(added, result + residual, atol=1e-6, rtol=1e-6)
    for row in range(rows):
        alone = cpu.linear(x[row : row + 1], packed.weight, torch.float32)
        assert torch.equal(alone[0], result[row])


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("inputs", [32, 96, 128, 896])
@pytest.mark.parametrize("dtype", DTYPES)
def test_outliers_cost_little_behind_a_rotation(kind, inputs, dtype):
    torch.manual_seed(inputs)
    quantization = Quantization(kind, 32, rotated=True)
    layer = make_linear(inputs, 40, bias=True, quantization=quantization)
    for name, tensor in layer.quantize(torch.randn(40, inputs)).items():
        setattr(layer, name, tensor)
    layer.bias.data = torch.randn(40).to(dtype)
    packed = for_serving(layer, cpu, dtype)
    x = torch.randn(19, inputs).to(dtype)
    x[:, 7] *= 60
    weight = layer.matrix(torch.float64)
    result = cpu.linear(x, packed.weight, torch.float32)
    expected = x.double() @ weight.T + layer.bias.double()
    step = (reference.hadamard(x.float(), layer.rotation).abs().amax(1) / 127).double()
    # Rounding errors of inputs are independent and a step wide: twice their size is chance.
    error = (result - expected).square().mean(1).sqrt()
    assert (error <= 2 * step / math.sqrt(12) * weight.square().sum(1).mean().sqrt()).all()
    for row in range(len(x)):
        assert torch.equal(
            cpu.linear(x[row : row + 1], packed.weight, torch.float32)[0], result[row]
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_rotated_embeddings_are_rotated_back(dtype):
    torch.manual_seed(5)
    weight = torch.randn(50, 96)
    layer = make_embedding(50, 96, Quantization("int8", rotated=True))
    for name, tensor in layer.quantize(weight).items():
        setattr(layer, name, tensor)
    layer.dtype = dtype
    ids = torch.tensor([0, 49, 17, 17])
    rows = for_serving(layer, cpu, dtype)(ids)
    torch.testing.assert_close(rows, layer(ids), atol=1e-5, rtol=1e-2)
    torch.testing.assert_close(rows.float(), weight[ids], atol=0.06, rtol=0)


def test_integer_results_are_the_same_on_every_instruction_set(instruction_set):
    torch.manual_seed(1)
    layers = [make(kind, 70, 256, 64, torch.float32, False)[0] for kind in ("int8", "int4")]
    x = torch.randn(9, 256)
    packed = [for_serving(layer, cpu, torch.float32) for layer in layers]
    here = [layer(x) for layer in packed]
    cpu.start(1, "avx2" if instruction_set != "generic" else "generic")
    there = [layer(x) for layer in packed]
    cpu.start(2, instruction_set)
    for left, right in zip(here, there, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("kind", ["dense", "int8", "int4"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_a_number_spoils_no_other(kind, bad):
    torch.manual_seed(2)
    layer, _ = make(kind, 32, 128, 64, torch.float32, False)
    packed = for_serving(layer, cpu, torch.float32)
    x = torch.randn(20, 128)
    clean = packed(x)
    x[7, 5] = bad
    spoiled = packed(x)
    assert not spoiled[7].isfinite().any()
    keep = torch.arange(20) != 7
    assert torch.equal(spoiled[keep], clean[keep])


def test_zero_and_huge_activations():
    layer, exact = make("int4", 16, 64, 64, torch.float32, False)
    packed = for_serving(layer, cpu, torch.float32)
    x = torch.stack((torch.zeros(64), torch.full((64,), 1e30), torch.full((64,), 1e-38)))
    result = packed(x)
    assert (result[0] == 0).all()
    torch.testing.assert_close(result[1].double(), x[1].double() @ exact.T, rtol=1e-3, atol=0)
    assert (result[2].abs() < 1e-30).all()


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_embeddings_are_the_rows_of_their_matrix(dtype):
    torch.manual_seed(5)
    weight = torch.randn(50, 40).to(dtype)
    ids = torch.tensor([0, 49, 17, 17])
    assert torch.equal(cpu.embed(ids, cpu.pack_dense(weight), dtype), weight[ids])
    stored = quantize_int8(weight)
    layer = Int8Embedding(50, 40)
    layer.weight_int8, layer.scale, layer.dtype = stored["weight_int8"], stored["scale"], dtype
    assert torch.equal(for_serving(layer, cpu, dtype)(ids), layer(ids))


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


@settings(max_examples=60, deadline=None)
@given(
    vocab=st.sampled_from([1, 15, 16, 1000, 5000]),
    spread=st.sampled_from([0.0, 1.0, 5.0, 40.0]),
    temperature=st.sampled_from([0.2, 1.0, 1.7]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.0, 0.1, 1.0]),
    top_k=st.sampled_from([0, 0, 1, 7, 4000]),
    seed=st.integers(0, 10_000),
)
def test_draws_equal_those_of_a_full_sort(vocab, spread, temperature, top_p, min_p, top_k, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, vocab, generator=generator) * spread
    point = torch.rand(1, generator=generator, dtype=torch.float64)

    def one(value) -> torch.Tensor:
        return torch.tensor([value], dtype=torch.float64)

    tensors = SamplingTensors(
        one(temperature), one(top_p), one(min_p), torch.tensor([top_k]), point
    )
    token = cpu.sample(logits, tensors).item()
    p = torch.softmax(logits[0].double() / temperature, 0)
    filtered = top_p < 1 or min_p > 0 or 0 < top_k < vocab
    order = p.sort(descending=True, stable=True).indices if filtered else torch.arange(vocab)
    before = p[order].cumsum(0) - p[order]
    if filtered:
        rank = torch.arange(vocab)
        keep = (before < top_p) & (rank < (top_k or vocab)) & (p[order] >= min_p * p.max())
        keep[0] = True
        order = order[keep]
    mass = p[order].sum()
    place = (order == token).nonzero()
    assert len(place), "a token that was cut"
    index = place.item()
    below = p[order][:index].sum()
    # Weights are float32: a token on the edge of a filter, and a sample between
    # two, may go either way.
    slack = 1e-5 * mass + p[order][-1]
    assert below - slack <= point.item() * mass <= below + p[order][index] + slack


@pytest.mark.parametrize("cut", [{}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.05}])
def test_several_samples_of_a_row_are_those_of_splitmix64(cut):
    """The first is the row's own; further ones are as many rows with the numbers that follow."""
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(5, 300, generator=generator)
    columns = {"top_p": torch.ones(5), "min_p": torch.zeros(5), "top_k": torch.zeros(5)}
    columns |= {name: torch.full((5,), value) for name, value in cut.items()}
    tensors = SamplingTensors(
        temperature=torch.full((5,), 0.9).double(),
        top_p=columns["top_p"].double(),
        min_p=columns["min_p"].double(),
        top_k=columns["top_k"].long(),
        uniform=torch.rand(5, generator=generator, dtype=torch.float64),
    )
    several = cpu.samples(logits, tensors, 30)
    assert torch.equal(several[:, 0], cpu.sample(logits, tensors))
    assert torch.equal(several, reference.samples(logits, tensors, 30))
    assert len(set(several[0].tolist())) > 5


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0, 30.0])
@pytest.mark.parametrize("vocab", [1, 15, 64, 65, 5000])
def test_the_heaviest_tokens_and_the_weight_of_all(vocab, spread):
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(5, vocab, generator=generator) * spread
    rows, temperature = torch.tensor([3, 0]), torch.tensor([0.7, 1.9]).double()
    tokens, weights, totals = cpu.heaviest(logits, rows, temperature, 64)
    ours, theirs, sums = reference.heaviest(logits, rows, temperature, 64)
    torch.testing.assert_close(totals, sums, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        weights, theirs.float().where(theirs > 1e-3, 0), rtol=1e-5, atol=1e-8
    )
    for n in range(2):
        kept = int((weights[n] > 0).sum())
        assert (tokens[n, kept:] == -1).all()
        assert len(set(tokens[n, :kept].tolist())) == kept
        if spread == 0:
            assert tokens[n, :kept].tolist() == list(range(kept))
        elif spread > 1:
            assert torch.equal(tokens[n, :kept], ours[n, :kept])


@pytest.mark.parametrize("vocab", [1, 7, 8, 16, 17, 1003])
def test_restricted_rows_have_the_allowed_logits(vocab):
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(6, vocab + 3, generator=generator)[:, :vocab]
    rows = torch.tensor([4, 1, 1])
    allowed = torch.randint(256, (3, -(-vocab // 8)), generator=generator, dtype=torch.uint8)
    found = cpu.restrict(logits, rows, allowed)
    assert torch.equal(found, reference.restrict(logits, rows, allowed))
    for n, row in enumerate(rows.tolist()):
        for token in range(vocab):
            bit = (allowed[n, token // 8].item() >> (token % 8)) & 1
            assert found[n, token] == (logits[row, token] if bit else -math.inf)
    with pytest.raises(ValueError, match="sources"):
        cpu.restrict(logits, torch.tensor([6]), allowed[:1])


@pytest.mark.parametrize("vocab", [1, 15, 16, 17, 1000])
@pytest.mark.parametrize("last", [None, math.nan, math.inf, -math.inf])
def test_argmax_is_the_first_of_equals_and_knows_broken_rows(vocab, last):
    logits = torch.randint(
        -3, 4, (9, vocab), generator=torch.Generator().manual_seed(vocab)
    ).float()
    if last is not None:
        logits[4, -1] = last
    logits[7] = -math.inf
    tokens, finite = cpu.argmax(logits)
    expected, expected_finite = reference.argmax(logits)
    assert torch.equal(finite, expected_finite)
    assert torch.equal(tokens[finite], expected[finite])


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


@pytest.mark.parametrize("kind", ["dense", "int8", "int4"])
def test_fetching_a_cache_meanwhile_changes_no_product(kind):
    layer, _ = make(kind, 80, 128, 64, torch.bfloat16, False)
    packed = for_serving(layer, cpu, torch.bfloat16)
    x = torch.randn(50, 128).bfloat16()
    expected = packed(x)
    layout = PagedLayout(
        slots=torch.arange(3),
        block_tables=torch.tensor([[0, 1], [2, 0], [3, 4]], dtype=torch.int32),
        starts=torch.arange(4, dtype=torch.int32),
        lengths=torch.tensor([20, 3, 32], dtype=torch.int32),
        query_starts=(0, 1, 2, 3),
        context_lengths=(20, 3, 32),
        decodes=3,
        block_size=16,
    )
    for dtype in (torch.bfloat16, torch.int8):
        cache = cpu.allocate_cache(5, 16, 2, 32, dtype, torch.device("cpu"))
        cpu.prefetch(cache, layout, 2, 32)
        for _ in range(3):
            assert torch.equal(packed(x), expected)
