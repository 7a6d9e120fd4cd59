"""Samples of filtered distributions, against the mask itself."""

from __future__ import annotations

import random

import pytest
from hagane.engine.sampling.candidates import sample_allowed
from hagane.pool.messages import SamplingParams


def masked(weights, params, point, allowed):
    """The token at `point` of what the filters leave of the masked distribution."""
    order = sorted(allowed, key=lambda token: (-weights[token], token))
    total, before, kept = sum(weights[token] for token in order), 0.0, []
    for rank, token in enumerate(order):
        cut = (params.top_k and rank >= params.top_k) or before >= params.top_p * total
        if rank and (cut or weights[token] < params.min_p * weights[order[0]]):
            break
        kept.append(token)
        before += weights[token]
    mass, target = 0.0, point * before
    for token in kept:
        mass += weights[token]
        if mass > target:
            return token
    return kept[-1]


@pytest.mark.parametrize("spread", [0.5, 3.0, 8.0])
@pytest.mark.parametrize(
    "cut",
    [
        {"top_k": 1},
        {"top_k": 20, "top_p": 0.8},
        {"top_p": 0.95},
        {"min_p": 0.1},
        {"top_k": 5, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_it_is_the_token_of_the_mask_or_unsure(cut, spread):
    rng, params = random.Random(4), SamplingParams(max_tokens=1, **cut)
    sure, asked = 0, 0
    for _ in range(300):
        weights = [2.718 ** (-spread * rng.random()) for _ in range(200)]
        share = rng.choice([0.02, 0.5, 0.9, 1.0])
        allowed = {token for token in range(200) if rng.random() < share} or {7}
        order = sorted(range(200), key=lambda token: (-weights[token], token))
        point, questions = rng.random(), []

        def admits(token, allowed=allowed, questions=questions):
            questions.append(token)
            return token in allowed

        likeliest = [(token, weights[token]) for token in order[:64]]
        found = sample_allowed(likeliest, sum(weights), params, point, admits)
        assert found is None or found == masked(weights, params, point, allowed)
        sure, asked = sure + (found is not None), asked + len(questions)
    if cut == {"top_k": 1}:
        assert sure > 220
        assert asked < 300 * 20
    elif spread == 8.0 and "top_k" in cut:
        assert sure > 150


def test_a_peaked_distribution_takes_few_questions():
    params, questions = SamplingParams(max_tokens=1, top_p=0.8), []

    def admits(token):
        questions.append(token)
        return token != 3

    assert sample_allowed([(3, 0.9), (4, 0.09), (5, 0.01)], 1.0, params, 0.99, admits) == 4
    assert questions == [3, 4]
    assert sample_allowed([(4, 0.5), (5, 0.3)], 1.0, params, 0.1, admits) is not None
    assert sample_allowed([(4, 0.5), (5, 0.1)], 1.0, params, 0.99, admits) is None
