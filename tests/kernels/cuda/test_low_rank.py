"""Low-rank changes row by row against float64; on the CPU through Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from hagane.kernels.low_rank import AdapterRows, Part

low_rank = pytest.importorskip("hagane.kernels.cuda.low_rank")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OUT, INPUTS = 300, 70


@pytest.fixture
def few_ranks(monkeypatch):
    """The interpreter takes a millisecond for every program, also for those without work."""
    monkeypatch.setattr(low_rank, "MAX_RANKS", 48)


def change(dtype: torch.dtype, *ranks: int) -> list[Part]:
    """A part to each third of the outputs, but for those of rank 0."""
    third = OUT // 3
    return [
        Part(
            i * third, torch.randn(rank, INPUTS).to(dtype), torch.randn(third, rank).to(dtype), 0.5
        )
        for i, rank in enumerate(ranks)
        if rank
    ]


def exact(x: torch.Tensor, parts: list[Part]) -> torch.Tensor:
    total = torch.zeros(len(x), OUT, dtype=torch.float64)
    for part in parts:
        columns = slice(part.first, part.first + part.b.shape[0])
        a, b = part.factors(x.dtype)
        total[:, columns] += x.double().cpu() @ a.double().T @ b.double().T
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.usefixtures("few_ranks")
def test_every_row_gets_its_own_adapter_s_change(dtype, many):
    torch.manual_seed(0)
    bank = low_rank.CudaBank(OUT, dtype, DEVICE)
    adapters = {0: change(dtype, 4, 0, 19), 3: change(dtype, 0, 8, 0), 5: change(dtype, 16, 16, 1)}
    for slot, parts in adapters.items():
        bank.place(slot, bank.pack(parts))
    owners = torch.tensor([0, -1, 3, 5, 5, 0] * (12 if many else 1), dtype=torch.int32)
    groups = tuple((slot, (owners == slot).nonzero()[:, 0].to(DEVICE)) for slot in adapters)
    rows = AdapterRows(owners.to(DEVICE), groups)
    x = torch.randn(len(owners), INPUTS, device=DEVICE).to(dtype)
    base = torch.randn(len(owners), OUT, device=DEVICE).to(dtype)
    result = bank.add(base.clone(), x, rows)
    expected = base.double().cpu()
    for slot, parts in adapters.items():
        mine = owners == slot
        expected[mine] += exact(x[mine.to(DEVICE)], parts)
    assert torch.equal(result[1], base[1])
    tolerance = 2e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(result.double().cpu(), expected, atol=10 * tolerance, rtol=tolerance)


@pytest.mark.usefixtures("few_ranks")
def test_a_slot_may_be_emptied_and_given_to_another():
    bank = low_rank.CudaBank(OUT, torch.float32, DEVICE)
    x = torch.randn(1, INPUTS, device=DEVICE)
    rows = AdapterRows(torch.zeros(1, dtype=torch.int32, device=DEVICE))
    for ranks in ((8, 0, 0), (0, 0, 3)):
        parts = change(torch.float32, *ranks)
        bank.place(0, bank.pack(parts))
        result = bank.add(torch.zeros(1, OUT, device=DEVICE), x, rows)
        torch.testing.assert_close(result.double().cpu(), exact(x, parts), atol=1e-4, rtol=1e-4)
        assert bank.size(parts) == sum(t.nbytes for t in vars(bank.pack(parts)).values())
        bank.place(0, None)
    result = bank.add(torch.ones(1, OUT, device=DEVICE), x, rows)
    assert (result == 1).all()


def test_more_ranks_than_a_step_has_room_for_are_refused():
    bank = low_rank.CudaBank(OUT, torch.float32, DEVICE)
    with pytest.raises(ValueError, match="1545"):
        bank.pack(change(torch.float32, 515, 515, 515))
