"""Drawing without sorting against a full sort; on the CPU through Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from hagane.kernels.sampling import SamplingTensors
from hypothesis import given, settings
from hypothesis import strategies as st

cuda = pytest.importorskip("hagane.kernels.cuda")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@settings(max_examples=15, deadline=None)
@given(
    vocab=st.sampled_from([1, 15, 16, 1000, 5000]),
    spread=st.sampled_from([0.0, 1.0, 5.0, 40.0]),
    coarse=st.booleans(),
    temperature=st.sampled_from([0.2, 1.0, 1.7]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.0, 0.1, 1.0]),
    top_k=st.sampled_from([0, 0, 1, 7, 4000]),
    point=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 10_000),
)
def test_draws_equal_those_of_a_full_sort(
    vocab, spread, coarse, temperature, top_p, min_p, top_k, point, seed
):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, vocab, generator=generator) * spread
    if coarse:
        logits = logits.round()  # many equal ones
    tensors = SamplingTensors(
        column(temperature), column(top_p), column(min_p), torch.tensor([top_k]), column(point)
    )
    token = cuda.sample(logits.to(DEVICE), tensors).item()
    p = torch.softmax(logits[0].double() / temperature, 0)
    filtered = top_p < 1 or min_p > 0 or 0 < top_k < vocab
    order = p.sort(descending=True, stable=True).indices if filtered else torch.arange(vocab)
    slack = 3e-6
    if filtered:
        ordered = p[order]
        before = ordered.cumsum(0) - ordered
        rank = torch.arange(vocab)
        # A token on the edge of a cut may fall either way: weights are float32.
        keep = (before < top_p + slack) & (rank < (top_k or vocab))
        keep &= ordered >= min_p * p.max() * (1 - slack)
        keep[0] = True
        order = order[keep]
    mass = p[order].sum()
    place = (order == token).nonzero()
    assert len(place), "a token that was cut"
    below = p[order][: place.item()].sum()
    edge = p[order][-1] if filtered else 0
    assert below - slack - edge <= point * mass <= below + p[token] + slack + edge


def test_rows_differ_in_what_they_ask_for():
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]], device=DEVICE).repeat(4, 1)
    tensors = SamplingTensors(
        temperature=column(1, 1, 1, 0.01),
        top_p=column(1, 1, 0.5, 1),
        min_p=column(0, 0, 0, 0),
        top_k=torch.tensor([0, 2, 0, 0]),
        uniform=column(0.0, 0.999, 0.999, 0.5),
    )
    # First token in order of ids; second most likely of two; only the likeliest; nearly greedy.
    assert cuda.sample(logits, tensors).tolist() == [0, 2, 1, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_broken_rows_draw_some_id_and_spoil_no_other(bad):
    logits = torch.zeros(3, 50, device=DEVICE)
    logits[0] = bad
    logits[1, 7] = bad
    logits[2, 9] = 100
    for top_k in (0, 5):
        tensors = SamplingTensors(
            column(1, 1, 1), column(1, 1, 1), column(0, 0, 0), torch.full((3,), top_k),
            column(0.7, 0.7, 0.7),
        )  # fmt: skip
        tokens = cuda.sample(logits, tensors).tolist()
        assert all(0 <= token < 50 for token in tokens)
        assert tokens[2] == 9
