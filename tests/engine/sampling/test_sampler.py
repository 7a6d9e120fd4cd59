"""Sampling against plain references."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hagane.engine.sampling.sampler import Sampler, prompt_logprobs, uniform
from hagane.engine.schedule.sequence import Sequence
from hagane.kernels import cpu, reference
from hagane.pool.messages import GenerateRequest, GrammarRef, SamplingParams

VOCAB = 50


@pytest.fixture(
    params=[
        reference,
        pytest.param(
            cpu,
            marks=pytest.mark.skipif(not cpu.available(), reason="kernels not built"),
        ),
    ],
    ids=["reference", "cpu"],
)
def sampler(request) -> Sampler:
    return Sampler(request.param)


def sequence(tokens=(1, 2, 2, 3), generated=2, **params) -> Sequence:
    sampling = SamplingParams(max_tokens=100, **params)
    prompt = tuple(tokens[: len(tokens) - generated])
    made = Sequence.of(GenerateRequest(request_id="r", prompt=prompt, sampling=sampling), 0, 0.0)
    made.tokens = list(tokens)
    return made


def logits(seed: int = 0, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def frequencies(sampler: Sampler, row: torch.Tensor, draws: int = 4000, **params):
    rows = row.expand(draws, -1)
    made = [sequence(seed=i, **params) for i in range(draws)]
    counts = Counter(sampler.sample(rows, made).wait().tokens)
    return {token: count / draws for token, count in counts.items()}


def expected(row: torch.Tensor, keep: list[int], temperature: float) -> dict[int, float]:
    weights = {i: math.exp(row[i].item() / temperature) for i in keep}
    total = sum(weights.values())
    return {i: weight / total for i, weight in weights.items()}


def test_a_step_in_the_middle_of_a_prompt_samples_nothing(sampler):
    assert sampler.sample(torch.empty(0, VOCAB), []).wait().tokens == []


def test_greedy_takes_the_first_of_equals(sampler):
    row = torch.zeros(1, VOCAB)
    row[0, [7, 9]] = 1.0
    assert sampler.sample(row, [sequence(temperature=0)]).wait().tokens == [7]


@pytest.mark.parametrize(
    ("params", "count"),
    [({"top_k": 3}, 3), ({"top_p": 0.5}, None), ({"min_p": 0.3}, None), ({}, VOCAB)],
)
def test_frequencies_follow_the_filtered_distribution(sampler, params, count):
    (row,) = logits(3)
    order = row.argsort(descending=True).tolist()
    probabilities = expected(row, order, 0.8)
    if "top_p" in params:
        mass, count = 0.0, 0
        while mass < params["top_p"]:
            mass += probabilities[order[count]]
            count += 1
    if "min_p" in params:
        floor = params["min_p"] * probabilities[order[0]]
        count = sum(p >= floor for p in probabilities.values())
    reference = expected(row, order[:count], 0.8)
    seen = frequencies(sampler, row[None], temperature=0.8, **params)
    assert set(seen) <= set(reference)
    for token, probability in reference.items():
        error = 4.5 * math.sqrt(probability * (1 - probability) / 4000)
        assert seen.get(token, 0) == pytest.approx(probability, abs=error + 1e-3)


def test_seeded_rows_do_not_depend_on_the_batch(sampler):
    rows = logits(5, rows=8)
    made = [sequence(seed=i, temperature=1.3, top_p=0.7 + 0.04 * i) for i in range(8)]
    together = sampler.sample(rows, made).wait().tokens
    alone = [sampler.sample(rows[i : i + 1], made[i : i + 1]).wait().tokens[0] for i in range(8)]
    reverse = sampler.sample(rows.flip(0), made[::-1]).wait().tokens[::-1]
    assert together == alone == reverse


def test_penalties_bias_and_minimum(sampler):
    row = torch.full((1, VOCAB), -1.0)
    row[0, 2] = 3.0
    greedy = {"temperature": 0, "tokens": (1, 5, 2, 2), "generated": 2}
    row[0, 8] = 1.9

    def pick(**params) -> int:
        before = row.clone()
        (token,) = sampler.sample(row, [sequence(**greedy, **params)]).wait().tokens
        assert torch.equal(row, before)
        return token

    assert pick() == 2
    assert pick(repetition_penalty=1.7) == 8
    assert pick(presence_penalty=1.0) == 2
    assert pick(presence_penalty=1.2) == 8
    assert pick(frequency_penalty=0.6) == 8
    assert pick(logit_bias={8: 2.0}) == 8
    assert pick(min_tokens=3, eos_token_ids=(2,)) == 8
    assert pick(min_tokens=2, eos_token_ids=(2,)) == 2


class Allowing:
    """A grammar that allows the same tokens always, and counts its masks."""

    def __init__(self, tokens) -> None:
        self.tokens, self.masks = frozenset(tokens), 0

    def admits(self, sequence, token):
        return token in self.tokens

    def first_of(self, sequence, tokens):
        return next((token for token in tokens if token in self.tokens), None)

    def allowed(self, sequence):
        self.masks += 1
        flags = np.zeros(8 * -(-VOCAB // 8), dtype=np.uint8)
        flags[list(self.tokens)] = 1
        return torch.from_numpy(np.packbits(flags, bitorder="little"))


def constrained(**params) -> Sequence:
    made = sequence(**params)
    made.grammar = GrammarRef("digest", "text")
    return made


@pytest.mark.parametrize("cut", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.3}])
@pytest.mark.parametrize("count", [1, 2, 25, 49])
def test_samples_under_a_grammar_follow_the_masked_distribution(sampler, cut, count):
    """However rare the allowed tokens are, and whether they were found with a mask or without."""
    (row,) = logits(3)
    order = row.argsort().tolist()
    allowed = Allowing(order[:count] if count > 2 else order[-7 : -7 + count])
    masked = torch.full_like(row, -torch.inf)
    masked[list(allowed.tokens)] = row[list(allowed.tokens)]
    want = frequencies(sampler, masked[None], temperature=0.8, **cut)
    made = [constrained(seed=i, temperature=0.8, **cut) for i in range(4000)]
    counts = Counter(sampler.sample(row.repeat(4000, 1), made, allowed).wait().tokens)
    assert set(counts) <= allowed.tokens
    for token in want | counts:
        p = want.get(token, 0)
        error = 4.5 * math.sqrt(2 * p * (1 - p) / 4000)
        assert counts[token] / 4000 == pytest.approx(p, abs=error + 2e-3)


def test_the_likeliest_allowed_token_needs_no_mask_if_few_are_likelier(sampler):
    rows = logits(4, rows=40)
    order = rows.argsort(dim=1, descending=True).tolist()
    for place in (0, 1, 2, 7, 8):
        for row, tokens in enumerate(order):
            allowed = Allowing(tokens[place:])
            made = [constrained(temperature=0)]
            found = sampler.sample(rows[row : row + 1], made, allowed).wait().tokens
            assert found == [tokens[place]]
            assert allowed.masks == (place > 7)


@pytest.mark.parametrize("params", [{"temperature": 0}, {"seed": 1}, {"seed": 1, "top_k": 5}])
def test_logits_are_what_they_were_once_a_token_is_found(sampler, params):
    """Refused tokens are taken out of them in between; log-probabilities are read afterwards."""
    rows = logits(8, rows=6)
    before = rows.clone()
    rarest = Allowing(rows[0].argsort()[:2].tolist())
    found = sampler.sample(rows, [constrained(**params) for _ in rows], rarest).wait().tokens
    assert set(found) <= rarest.tokens and rarest.masks
    assert torch.equal(rows, before)


def test_constrained_rows_do_not_depend_on_the_batch(sampler):
    rows = logits(5, rows=24)
    allowed = Allowing(range(0, VOCAB, 7))
    cuts = ({}, {"top_p": 0.9}, {"temperature": 0.0}, {"top_k": 5, "presence_penalty": 1.5})
    made = [
        (constrained if i % 5 else sequence)(**{"seed": i, "temperature": 1.3} | cuts[i % 4])
        for i in range(24)
    ]
    together = sampler.sample(rows, made, allowed).wait().tokens
    alone = [
        sampler.sample(rows[i : i + 1], made[i : i + 1], allowed).wait().tokens[0]
        for i in range(24)
    ]
    reverse = sampler.sample(rows.flip(0), made[::-1], allowed).wait().tokens[::-1]
    assert together == alone == reverse


@pytest.mark.parametrize("operations", [reference, cpu])
@pytest.mark.parametrize("cut", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_row_fails_alone(operations, cut, bad):
    if operations is cpu and not cpu.available():
        pytest.skip("kernels not built")
    rows = logits(6, rows=3)
    rows[1, 4] = bad
    made = [sequence(temperature=t, **cut) for t in (0, 1, 0)]
    result = Sampler(operations).sample(rows, made).wait()
    assert result.failed == (1,)
    assert result.tokens[0] == rows[0].argmax().item()


def test_logprobs_are_the_models_own(sampler):
    rows = logits(7, rows=2)
    made = [sequence(temperature=0, logprobs=2, logit_bias={4: 100}), sequence(temperature=0)]
    result = sampler.sample(rows, made).wait()
    assert list(result.logprobs) == made[:1]
    entry = result.logprobs[made[0]]
    reference = rows[0].double().log_softmax(0)
    assert (entry.token, result.tokens[0]) == (4, 4)
    assert entry.logprob == pytest.approx(reference[4].item(), abs=1e-5)
    assert [token for token, _ in entry.top] == reference.topk(2).indices.tolist()
    (scored,) = prompt_logprobs(rows[:1], [9], 0)
    assert (scored.token, scored.top) == (9, ())


def test_uniform_is_uniform_and_reproducible():
    values = [
        uniform(seed, index, place)
        for seed in range(20)
        for index in range(5)
        for place in range(50)
    ]
    assert len(set(values)) == len(values)
    assert sum(values) / len(values) == pytest.approx(0.5, abs=0.02)
    assert uniform(1, 2, 3) == uniform(1, 2, 3)
