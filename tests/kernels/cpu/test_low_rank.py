"""Low-rank changes by row against plain products, on every instruction set of this machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hagane.kernels import cpu
from hagane.kernels.cpu.low_rank import NativeBank
from hagane.kernels.low_rank import AdapterRows, Part, TorchBank
from hagane.lora.banks import Adapted, PackedAdapted
from hagane.models.formats.dense import Dense
from hagane.models.formats.int4 import Int4
from hagane.models.formats.int8 import Int8
from hagane.models.serving_layers import for_serving
from hypothesis import given, settings
from hypothesis import strategies as st

CPU = torch.device("cpu")


def layer_of(
    kind: str, out: int, inputs: int, dtype: torch.dtype, rotation: int = 0
) -> torch.nn.Module:
    weight = torch.randn(out, inputs)
    if kind == "dense":
        layer: Dense | Int8 | Int4 = Dense(inputs, out, bias=False)
        layer.weight.data = weight.to(dtype)
        return layer
    if kind == "int8":
        layer = Int8(inputs, out, False, rotation)
    else:
        layer = Int4(inputs, out, False, 32, rotation)
    for name, tensor in layer.quantize(weight).items():
        setattr(layer, name, tensor)
    return layer


def parts_of(outs: list[int], inputs: int, ranks: list[int], dtype: torch.dtype) -> list[Part]:
    """A change to every part of a fused matrix but those of rank 0."""
    firsts = [sum(outs[:i]) for i in range(len(outs))]
    return [
        Part(first, torch.randn(rank, inputs).to(dtype), torch.randn(out, rank).to(dtype), 0.5)
        for first, out, rank in zip(firsts, outs, ranks, strict=True)
        if rank
    ]


def exact_change(
    x: torch.Tensor, parts: list[Part], out: int, kind: str = "dense"
) -> tuple[torch.Tensor, torch.Tensor]:
    """In float64, from what `kind` of matrix sees; and how far off sums may be.

    On one in 8 bits, a x is rounded to half a code of at most 127 for its row's largest rank.
    """
    change, slack = (torch.zeros(x.shape[0], out, dtype=torch.float64) for _ in range(2))
    seen = torch.Tensor.double if kind == "dense" else eight_bits
    x = x.double()
    factors = [
        tuple(seen(f) for f in part.factors(part.a.dtype if kind == "dense" else torch.float32))
        for part in parts
    ]
    largest = torch.stack([(x @ a.T).abs().amax(dim=1) for a, _ in factors]).amax(dim=0)
    for part, (a, b) in zip(parts, factors, strict=True):
        columns = slice(part.first, part.first + b.shape[0])
        change[:, columns] += x @ a.T @ b.T
        slack[:, columns] += 1e-5 * (x.abs() @ a.abs().T @ b.abs().T)
        if kind != "dense":
            slack[:, columns] += 0.505 / 127 * largest[:, None] * b.abs().sum(dim=1)
    return change, slack


def eight_bits(rows: torch.Tensor) -> torch.Tensor:
    """The float64 [rows, columns] nearest to `rows` that have 255 values each."""
    scale = rows.abs().amax(dim=1, keepdim=True) / 127
    return (rows / scale).round().double() * scale.double()


def rows_of(slots: list[int]) -> AdapterRows:
    tensor = torch.tensor(slots, dtype=torch.int32)
    groups = tuple((s, (tensor == s).nonzero()[:, 0]) for s in sorted(set(slots) - {-1}))
    return AdapterRows(tensor, groups)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_changes_see_the_rotated_inputs_of_their_matrix(instruction_set, kind):
    torch.manual_seed(0)
    layer = layer_of(kind, 48, 96, torch.float32, rotation=32)
    base = for_serving(layer, cpu, torch.float32)
    bank = NativeBank(base.weight)
    parts = parts_of([16, 32], 96, [8, 8], torch.float32)
    bank.place(0, bank.pack(parts))
    x = torch.randn(5, 96)
    x[:, 3] = 40.0
    result = PackedAdapted(base.weight, bank)(x, None, rows_of([0, -1, 0, 0, 0]))
    change = (result - base(x)).double()
    expected, _ = exact_change(x, parts, 48)
    expected[1] = 0
    assert torch.equal(change[1], expected[1])
    assert (change - expected).norm() <= 0.02 * expected.norm()


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["dense", "int8", "int4"]),
    slots=st.lists(st.integers(-1, 3), min_size=1, max_size=70),
    outs=st.lists(st.sampled_from([1, 8, 16, 24, 40, 48]), min_size=1, max_size=3),
    inputs=st.sampled_from([32, 64, 96]),
    ranks=st.lists(
        st.lists(st.sampled_from([0, 1, 2, 3, 8, 16, 17, 40]), min_size=3, max_size=3),
        min_size=4,
        max_size=4,
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_every_row_has_its_own_change(
    instruction_set, kind, slots, outs, inputs, ranks, dtype, seed
):
    torch.manual_seed(seed)
    out = sum(outs)
    base = for_serving(layer_of(kind, out, inputs, dtype), cpu, dtype)
    bank = NativeBank(base.weight)
    adapters = [parts_of(outs, inputs, own[: len(outs)], dtype) for own in ranks]
    for slot, parts in enumerate(adapters):
        if parts:
            change = bank.pack(parts)
            assert change.nbytes == bank.size(parts)
            bank.place(slot, change)
    layer = PackedAdapted(base.weight, bank)
    x, residual = (torch.randn(len(slots), width).to(dtype) for width in (inputs, out))
    if kind != "dense":  # such as 8 bits hold without loss
        x = torch.randint(-127, 128, x.shape).to(dtype)
        x[:, 0] = 127
    result = layer(x, residual, rows_of(slots))
    plain = base(x, residual)
    assert torch.equal(layer(x, residual), plain)
    for row, slot in enumerate(slots):
        alone = layer(x[row : row + 1], residual[row : row + 1], rows_of([slot]))
        assert torch.equal(alone[0], result[row])
        parts = adapters[slot] if slot >= 0 else []
        if not parts:
            assert torch.equal(result[row], plain[row])
            continue
        change, slack = exact_change(x[row : row + 1], parts, out, kind)
        expected = plain[row].double() + change[0]
        rounding = torch.finfo(dtype).eps * (plain[row].double().abs() + expected.abs())
        assert ((result[row] - expected).abs() <= rounding + slack[0] + 1e-6).all()


@pytest.mark.parametrize("kind", ["dense", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gains_multiply_the_rows_that_have_them(instruction_set, kind, dtype):
    """Without bias and residual, in any company; other rows keep their bits."""
    torch.manual_seed(8)
    outs, inputs, rows = [24, 16], 64, 21
    stored = layer_of(kind, 40, inputs, dtype)
    stored.bias = torch.nn.Parameter(50 * torch.randn(40).to(dtype), requires_grad=False)
    base = for_serving(stored, cpu, dtype)
    bank, plain = NativeBank(base.weight), NativeBank(base.weight)
    parts = parts_of(outs, inputs, [4, 8], dtype)
    scaled = [replace(parts[0], gain=torch.rand(24) - 0.5), parts[1]]
    change = bank.pack(scaled)
    assert change.nbytes == bank.size(scaled)
    bank.place(0, change)
    bank.place(1, bank.pack(parts))
    plain.place(1, plain.pack(parts))
    layer, peer = PackedAdapted(base.weight, bank), PackedAdapted(base.weight, plain)
    x, residual = torch.randn(rows, inputs).to(dtype), torch.randn(rows, 40).to(dtype)
    if kind != "dense":  # such as 8 bits hold without loss
        x = torch.randint(-127, 128, x.shape).to(dtype)
        x[:, 0] = 127
    slots = [row % 3 - 1 for row in range(rows)]
    result = layer(x, residual, rows_of(slots))
    unscaled = [row for row in range(rows) if slots[row]]
    assert torch.equal(result[unscaled], peer(x, residual, rows_of(slots))[unscaled])
    wanted = [row for row in range(rows) if slots[row] == 0]
    gain = torch.cat([scaled[0].gain, torch.zeros(16)])
    own = cpu.linear(x, base.weight, torch.float32) - stored.bias.float()
    added, slack = exact_change(x, scaled, 40, kind)
    expected = (1 + gain) * own + stored.bias.float() + residual.float() + added
    error = (result.double() - expected).abs()
    assert (error <= torch.finfo(dtype).eps * expected.abs() + slack + 1e-3)[wanted].all()
    for row in wanted:
        alone = layer(x[row : row + 1], residual[row : row + 1], rows_of([0]))
        assert torch.equal(alone[0], result[row])


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_changes_in_8_bits_are_close(instruction_set, kind):
    torch.manual_seed(5)
    base = for_serving(layer_of(kind, 96, 256, torch.bfloat16), cpu, torch.bfloat16)
    bank = NativeBank(base.weight)
    parts = parts_of([64, 32], 256, [16, 8], torch.bfloat16)
    bank.place(0, bank.pack(parts))
    x = torch.randn(12, 256)
    change = PackedAdapted(base.weight, bank)(x, None, rows_of([0] * 12)) - base(x)
    expected, _ = exact_change(x, parts, 96)
    assert (change - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("kind", ["dense", "int4"])
def test_many_rows_have_the_bits_of_few(instruction_set, kind):
    """So many that a thread's blocks of outputs are taken in several passes."""
    torch.manual_seed(6)
    base = for_serving(layer_of(kind, 800, 32, torch.bfloat16), cpu, torch.bfloat16)
    bank = NativeBank(base.weight)
    for slot in range(2):
        bank.place(slot, bank.pack(parts_of([500, 300], 32, [16, 3], torch.bfloat16)))
    layer = PackedAdapted(base.weight, bank)
    x = torch.randn(1030, 32).bfloat16()
    slots = [row % 3 - 1 for row in range(len(x))]
    result = layer(x, None, rows_of(slots))
    for first in range(0, len(x), 103):
        few = slice(first, first + 103)
        assert torch.equal(layer(x[few], None, rows_of(slots[few])), result[few])
    assert torch.equal(result[::3], base(x)[::3])


@pytest.mark.parametrize("inputs", [33, 47])
def test_an_odd_number_of_inputs(instruction_set, inputs):
    torch.manual_seed(7)
    base = for_serving(layer_of("dense", 24, inputs, torch.bfloat16), cpu, torch.bfloat16)
    bank = NativeBank(base.weight)
    parts = parts_of([24], inputs, [5], torch.bfloat16)
    bank.place(0, bank.pack(parts))
    x = torch.randn(3, inputs).bfloat16()
    result = PackedAdapted(base.weight, bank)(x, None, rows_of([0, -1, 0]))
    change, _ = exact_change(x, parts, 24)
    expected = base(x).double() + change * torch.tensor([1, 0, 1])[:, None]
    torch.testing.assert_close(result.double(), expected, rtol=0.01, atol=0.1)


def test_an_emptied_slot_can_be_taken_again(instruction_set):
    torch.manual_seed(8)
    base = for_serving(layer_of("dense", 32, 32, torch.float32), cpu, torch.float32)
    bank = NativeBank(base.weight)
    layer = PackedAdapted(base.weight, bank)
    x = torch.randn(4, 32)
    first, second = (bank.pack(parts_of([32], 32, [rank], torch.float32)) for rank in (4, 32))
    results = []
    for change in (first, second, first):
        bank.place(1, change)
        results.append(layer(x, None, rows_of([1, 1, -1, 1])))
        bank.place(1, None)
        assert torch.equal(layer(x, None, rows_of([1, 1, -1, 1])), base(x))
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], results[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_operators(dtype):
    torch.manual_seed(9)
    outs, inputs, slots = [40, 8, 8], 32, [1, -1, 0, 1, 2]
    base = layer_of("dense", sum(outs), inputs, dtype)
    bank = TorchBank(dtype, CPU)
    adapters = [parts_of(outs, inputs, ranks, dtype) for ranks in ([4, 0, 2], [1, 8, 3])]
    for slot, parts in enumerate(adapters):
        bank.place(slot, bank.pack(parts))
    x = torch.randn(len(slots), inputs).to(dtype)
    with torch.no_grad():
        result, plain = Adapted(base, bank)(x, None, rows_of(slots)), base(x)
    for row, slot in enumerate(slots):
        if slot in (-1, 2):
            assert torch.equal(result[row], plain[row])
            continue
        change, rounding = exact_change(x[row : row + 1], adapters[slot], sum(outs))
        magnitude = 1e5 * rounding[0] + plain[row].double().abs()
        slack = 4 * torch.finfo(dtype).eps * magnitude
        assert ((result[row] - plain[row].double() - change[0]).abs() <= slack).all()
    assert bank.size(adapters[0]) == (4 * 72 + 2 * 40) * dtype.itemsize
