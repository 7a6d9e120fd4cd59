"""Mixtures of experts through the C++ kernels, compared with torch's operators."""

from __future__ import annotations

import pytest
import torch
from hagane.kernels import cpu, reference
from hagane.kernels.cpu import GroupedForm
from hagane.kernels.cpu.recording import Workspace
from torch.nn import functional

pytestmark = [
    pytest.mark.skipif(not cpu.available(), reason="kernels not built"),
    pytest.mark.usefixtures("instruction_set"),
]
EXPERTS, HIDDEN, INNER = 7, 96, 64
# "ordered" takes the inputs of each matrix in another order.
KINDS = ("dense", "int8", "int4", "grouped", "ordered")
ROUTINGS = {
    "softmax": {"chosen": 3},
    "unnormalised": {"chosen": 3, "normalised": False, "scale": 2.5},
    "sigmoid": {"chosen": 4, "score": "sigmoid", "scale": 1.5},
    "groups": {"chosen": 3, "score": "sigmoid", "groups": 4, "chosen_groups": 2},
    "best-of-groups": {"chosen": 2, "groups": 6, "chosen_groups": 3, "group_best": 1},
    "sparse": {"chosen": 2, "jitter": 0.4, "scale": 1.5},
}


def grouped(weight: torch.Tensor, *, ordered: bool) -> tuple[cpu.PackedWeight, torch.Tensor]:
    """Random codes of 5 bits in a file's groups, and the weights that they are."""
    form, shape = GroupedForm(5, 32, 0, True), tuple(weight.shape)
    codes = torch.randint(0, 32, shape, dtype=torch.uint8)
    scale = (torch.rand(len(weight), shape[1] // 32) * 0.02).half()
    minimum = (torch.randn(scale.shape) * 0.1).half()
    wide, least = (t.float().repeat_interleave(32, 1) for t in (scale, minimum))
    order = torch.randperm(shape[1]) if ordered else None
    matrix = cpu.pack_grouped([(codes, scale, minimum)], shape, form, order=order)
    floats = codes * wide + least
    return matrix, floats if order is None else floats[:, order.argsort()]


def packed(kind: str, rows: int, columns: int, dtype: torch.dtype) -> tuple:
    """A random matrix for the kernels, and as floats."""
    weight = torch.randn(rows, columns) * columns**-0.5
    if kind in ("grouped", "ordered"):
        return grouped(weight, ordered=kind == "ordered")
    if kind == "dense":
        bias = torch.randn(rows)
        matrix = cpu.pack_dense(weight.to(dtype), bias)
        return matrix, (weight.to(dtype).float(), bias)
    group = 32 if kind == "int4" else 0
    matrix = cpu.pack_quantized([weight], torch.float32, group, rotation=32)
    ones = cpu.linear(torch.eye(columns), matrix)
    return matrix, ones.T


def mixture(
    kind: str, dtype: torch.dtype, *, gated: bool = True, activation: str = "silu"
) -> tuple:
    torch.manual_seed(3)
    wide = INNER * (2 if gated else 1)
    mlps = [
        (packed(kind, wide, HIDDEN, dtype), packed(kind, HIDDEN, INNER, dtype))
        for _ in range(EXPERTS)
    ]
    native = cpu.PackedExperts([(up[0], down[0]) for up, down in mlps], activation, gated=gated)
    return native, [(up[1], down[1]) for up, down in mlps]


def inputs(rows: int, dtype: torch.dtype, chosen: int = 3, seed: int = 0) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, HIDDEN, generator=generator).to(dtype)
    logits = torch.randn(rows, EXPERTS, generator=generator)
    return x, *reference.route(logits, None, chosen=chosen)


def plain(x, numbers, weights, mlps, residual, *, gated: bool, activation: str):
    """The same in float64, one row and one expert after the other."""

    def apply(x, matrix):
        weight, bias = matrix if isinstance(matrix, tuple) else (matrix, None)
        return functional.linear(x, weight.double(), None if bias is None else bias.double())

    out = torch.zeros(x.shape, dtype=torch.float64)
    for row in range(len(x)):
        for number, weight in zip(numbers[row].tolist(), weights[row].double(), strict=True):
            up, down = mlps[number]
            inner = apply(x[row].double()[None], up)
            out[row] += weight * apply(reference.activate(inner, activation, gated=gated), down)[0]
    return out + (0 if residual is None else residual.double())


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("corrected", [False, True])
def test_experts_are_chosen_as_by_torch(routing, corrected):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(33, 12, generator=generator) * 2
    correction = torch.randn(12, generator=generator) * 0.3 if corrected else None
    numbers, weights = cpu.route(logits, correction, **ROUTINGS[routing])
    expected, scores = reference.route(logits, correction, **ROUTINGS[routing])
    assert torch.equal(numbers, expected)
    torch.testing.assert_close(weights, scores, atol=1e-6, rtol=1e-5)


def test_logits_that_are_nan_choose_experts_that_exist():
    logits = torch.full((3, 8), torch.nan)
    numbers, weights = cpu.route(logits, None, chosen=3, groups=4, chosen_groups=2)
    assert all(len(set(row)) == 3 and set(row) <= set(range(8)) for row in numbers.tolist())
    assert weights.isnan().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 5, 60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_the_weighted_sums_of_their_experts(kind, rows, dtype):
    native, mlps = mixture(kind, dtype)
    x, numbers, weights = inputs(rows, dtype)
    residual = torch.randn(rows, HIDDEN).to(dtype)
    out = cpu.mix_experts(x, numbers, weights, native, residual)
    expected = plain(x, numbers, weights, mlps, residual, gated=True, activation="silu")
    exact = kind == "dense" and dtype == torch.float32
    bound = 1e-4 if exact else 0.03 * expected.abs().max().item()
    torch.testing.assert_close(out.double(), expected, atol=bound, rtol=0)


def test_experts_without_a_gate_and_a_residual():
    native, mlps = mixture("dense", torch.float32, gated=False, activation="gelu")
    x, numbers, weights = inputs(9, torch.float32)
    out = cpu.mix_experts(x, numbers, weights, native, None)
    expected = plain(x, numbers, weights, mlps, None, gated=False, activation="gelu")
    torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_s_bits_are_those_that_it_has_alone(kind):
    native, _ = mixture(kind, torch.bfloat16)
    x, numbers, weights = inputs(70, torch.bfloat16)
    together = cpu.mix_experts(x, numbers, weights, native, x)
    for row in range(0, 70, 7):
        one = slice(row, row + 1)
        alone = cpu.mix_experts(x[one], numbers[one], weights[one], native, x[one])
        assert torch.equal(alone[0], together[row])
    some = torch.tensor([69, 3, 40, 3])
    mixed = cpu.mix_experts(x[some], numbers[some], weights[some], native, x[some])
    assert torch.equal(mixed, together[some])


def test_a_recording_follows_what_the_router_says_anew():
    native, _ = mixture("int8", torch.bfloat16)
    x, _, _ = inputs(4, torch.bfloat16)
    logits = torch.randn(4, EXPERTS)

    def step():
        return cpu.mix_experts(x, *cpu.route(logits, None, chosen=2), native, x)

    replay = cpu.record(step, Workspace())
    for seed in (5, 6):
        logits.copy_(torch.randn(4, EXPERTS, generator=torch.Generator().manual_seed(seed)))
        assert torch.equal(replay(), step())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_gated_by_the_sigmoid_of_their_score(dtype):
    x, scores = torch.randn(5, 40).to(dtype), torch.randn(5, 1) * 4
    expected = reference.gate_rows(x, scores)
    torch.testing.assert_close(cpu.gate_rows(x, scores), expected, atol=1e-6, rtol=1e-2)


def test_experts_that_differ_are_refused():
    up, down = (packed("dense", *shape, torch.float32)[0] for shape in ((128, 96), (96, 64)))
    coarse = packed("int8", 128, 96, torch.float32)[0]
    with pytest.raises(ValueError, match="alike"):
        cpu.PackedExperts([(up, down), (coarse, down)], "silu", gated=True)
    with pytest.raises(ValueError, match="gate_up and down"):
        cpu.PackedExperts([(down, down)], "silu", gated=True)
    native = cpu.PackedExperts([(up, down)], "silu", gated=False)
    numbers, weights = torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, 1)
    with pytest.raises(ValueError, match="x and the experts"):
        cpu.mix_experts(torch.randn(2, 96), numbers, weights, native, None)
