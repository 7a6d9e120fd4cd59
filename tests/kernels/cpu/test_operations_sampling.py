"""Sampling and what prepares it, for every instruction set of this machine."""

from __future__ import annotations

import math

import pytest
import torch
from hagane.kernels import cpu, reference
from hagane.kernels.sampling import SamplingTensors
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = [
    pytest.mark.skipif(not cpu.available(), reason="kernels not built"),
    pytest.mark.usefixtures("instruction_set"),
]


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
