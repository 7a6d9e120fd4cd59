"""Recorded kernels compute anew on what lies in their inputs, and share their memory."""

from __future__ import annotations

import pytest
import torch
from hagane.kernels import cpu
from hagane.kernels.cpu import extension
from hagane.kernels.cpu.recording import Workspace

pytestmark = pytest.mark.skipif(not cpu.available(), reason="kernels not built")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    cpu.start(1)


def test_a_replay_reads_its_inputs_again():
    inputs, weight = torch.randn(3, 64), torch.rand(64)

    def step():
        hidden = inputs
        for _ in range(5):
            hidden = cpu.rms_norm(hidden, weight, 1e-6)
        return hidden

    replay = cpu.record(step, Workspace())
    assert torch.equal(replay(), step())
    inputs.copy_(torch.randn(3, 64))
    assert torch.equal(replay(), step())


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_rows_that_go_through_several_operations_at_once_come_to_the_same(rows):
    generator = torch.Generator().manual_seed(rows)
    inputs = torch.randn(rows, 96, generator=generator).bfloat16()
    norm = torch.rand(96, generator=generator).bfloat16()
    up, down = (
        cpu.pack_int8(*cpu.quantize_rows(torch.randn(*shape, generator=generator)))
        for shape in ((128, 96), (96, 64))
    )

    def step():
        hidden = inputs
        for _ in range(3):
            inner = cpu.linear(cpu.rms_norm(hidden, norm, 1e-6), up)
            hidden = cpu.linear(cpu.silu_and_mul(inner), down, residual=hidden)
        return cpu.rms_norm(cpu.rms_norm(hidden, norm, 1e-6), norm, 1e-6)

    replay = cpu.record(step, Workspace())
    assert torch.equal(replay(), step())


def test_a_replay_can_be_left_at_its_cuts():
    inputs, weight = torch.randn(3, 64), torch.rand(64)

    def step():
        inner = cpu.rms_norm(inputs, weight, 1e-6)
        cpu.cut()
        inner = cpu.rms_norm(inner, weight, 1e-6)
        cpu.cut()
        return cpu.rms_norm(inner, weight, 1e-6)

    replay = cpu.record(step, Workspace())
    whole = replay().clone()
    for answers in ([True], [False, True]):
        assert replay(iter(answers).__next__) is None
    assert torch.equal(replay(lambda: False), whole)


def test_dead_tensors_give_their_memory_to_later_ones():
    workspace = Workspace()
    first = workspace.empty(2, 3000, dtype=torch.float32)
    address = first.data_ptr()
    second = workspace.empty(2, 3000, dtype=torch.float32)
    assert second.data_ptr() != address
    view = first[1:]
    del first
    assert workspace.empty(2, 3000, dtype=torch.float32).data_ptr() != address
    del view
    assert workspace.empty(5000, dtype=torch.int32).data_ptr() == address


def test_an_error_ends_the_recording():
    with pytest.raises(RuntimeError, match="on purpose"):
        cpu.record(lambda: (_ for _ in ()).throw(RuntimeError("on purpose")), Workspace())
    weight = torch.ones(16)
    assert cpu.rms_norm(torch.ones(1, 16), weight, 0.0).data_ptr() != 0
    with pytest.raises(RuntimeError, match="nothing is being recorded"):
        extension.recorded()
