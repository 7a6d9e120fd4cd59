"""The draft's view of a sequence, through whatever becomes of its guesses."""

from __future__ import annotations

import random

import pytest
from hagane.engine.sampling.constraints import Constraints, Grammars
from hagane.engine.sampling.grammar_vocabulary import Vocabulary
from hagane.engine.schedule.sequence import Sequence
from hagane.engine.speculative.costs import StepCosts
from hagane.engine.speculative.draft_model import PIECE, DraftModel
from hagane.engine.speculative.drafting import Drafting
from hagane.engine.speculative.pace import StepPlan
from hagane.engine.step.runner import ModelRunner
from hagane.kernels import cpu
from hagane.pool.messages import GenerateRequest, SamplingParams

from tests.support.engine import config

pytestmark = pytest.mark.skipif(not cpu.available(), reason="kernels not built")
BLOCKS = 64


@pytest.fixture(scope="module")
def runner(tiny_model_dir) -> ModelRunner:
    settings = config(tiny_model_dir, context_length=256, kv_cache_memory=8_192 * BLOCKS)
    return ModelRunner(settings)


def draft_model(runner: ModelRunner, vocab_size: int | None = None) -> DraftModel:
    def unread() -> str:
        raise AssertionError("no grammar is used")

    constraints = Constraints(Grammars(Vocabulary(unread), runner.vocab_size))
    rows = vocab_size or runner.vocab_size
    return DraftModel(runner, constraints, vocab_size=rows, prefix_caching=True)


def sequence(prompt, **params) -> Sequence:
    sampling = SamplingParams(max_tokens=100, **{"temperature": 0.0} | params)
    request = GenerateRequest(request_id="r", prompt=tuple(prompt), sampling=sampling)
    return Sequence.of(request, 0, 0.0)


def guess(model: DraftModel, *sequences: Sequence) -> list[int]:
    """The next guess for each; long texts are read before."""
    while True:
        found, _ = model.guess(sequences)
        if len(found) == len(sequences):
            return [found[one].token for one in sequences]


def fresh_guess(model: DraftModel, tokens: list[int], like: Sequence) -> int:
    other = sequence(like.tokens[: like.prompt_length])
    other.tokens, other.sampling, other.seed = list(tokens), like.sampling, like.seed
    assert model.follow(other)
    (token,) = guess(model, other)
    model.forget(other)
    return token


def test_a_long_text_is_read_in_pieces(runner):
    model = draft_model(runner)
    one = sequence([i % 300 for i in range(2 * PIECE + 10)])
    assert model.follow(one)
    reads = [model.guess([one]) for _ in range(3)]
    assert [read for _, read in reads] == [PIECE, PIECE, 10]
    assert [len(found) for found, _ in reads] == [0, 0, 1]
    assert 0.0 < reads[2][0][one].confidence <= 1.0
    # What was read is found again.
    model.catch_up(one)
    assert model.cached(sequence([*one.tokens, 5])) > PIECE


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_whatever_is_rejected_the_next_guess_is_that_of_the_text(runner, temperature):
    rng = random.Random(int(temperature))
    model = draft_model(runner)
    live = [sequence(rng.choices(range(3, 300), k=9), temperature=temperature) for _ in range(4)]
    assert all(map(model.follow, live))
    for _ in range(12):
        taking_part = rng.sample(live, rng.randint(1, 4))
        rounds = [guess(model, *taking_part) for _ in range(rng.randint(1, 4))]
        for one, guesses in zip(taking_part, zip(*rounds, strict=True), strict=True):
            right = rng.randint(0, len(guesses))
            one.tokens += [*guesses[:right], rng.randrange(3, 300)]
        for one in live:
            compared = model.catch_up(one)
            assert all(right for _, right in compared[:-1])
        model.check()
        checked = rng.choice(live)
        expected = fresh_guess(model, checked.tokens, checked)
        assert guess(model, checked) == [expected]
        model.catch_up(checked)
    for one in live:
        model.forget(one)
        model.forget(one)
    assert model.kv.used == 0
    model.check()


def test_without_memory_it_follows_no_more(runner):
    model = draft_model(runner)
    live = [sequence([number + 3] * 160) for number in range(8)]
    followed = [one for one in live if model.follow(one)]
    assert 0 < len(followed) < len(live)
    assert [model.behind(one) for one in live if one not in followed] == [None] * (
        len(live) - len(followed)
    )
    for one in followed:
        one.tokens += range(3, 43)
        model.catch_up(one)
    model.guess(followed)
    # Those that find no more blocks give back what they have.
    assert 0 < len([one for one in followed if model.behind(one) is None]) < len(followed)
    model.check()


def test_the_models_may_differ_in_unused_rows(runner):
    small = draft_model(runner, vocab_size=3)
    one = sequence([5, 6, 7])
    assert small.follow(one)
    found, _ = small.guess([one])
    assert all(each.token < 3 for each in found.values())
    larger = draft_model(runner, vocab_size=2 * runner.vocab_size)
    beyond = sequence([5, runner.vocab_size + 9, 7], logit_bias={runner.vocab_size + 3: 5.0})
    assert larger.follow(beyond)
    assert guess(larger, beyond)


def drafted(drafting: Drafting, one: Sequence, cost: StepCosts) -> list[int]:
    """What is guessed for a sequence that decodes alone."""
    offer = drafting.offer(one, 20, 1, 16, cost)
    if not offer.guesses:
        return []
    plan = StepPlan(1, 1.0, cost)
    made = drafting.draft({one: offer.guesses}, plan, lambda *_: False, cost)
    return made.get(one, [])


class Fixed(StepCosts):
    """Every step takes as long, as if it were measured."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._fixed = seconds

    @property
    def measured(self) -> bool:
        return True

    def __call__(self, rows: int) -> float:
        return self._fixed


def guess_wrong(drafting: Drafting, first: int, tokens: int) -> int:
    """Lets every guess for a sequence be wrong; returns how many there were."""
    cost, one, wrong = Fixed(1.0), sequence([first, 6, 7]), 0
    for _ in range(tokens):
        one.tokens.append(299)
        guesses = drafted(drafting, one, cost)
        wrong += len(guesses)
        one.tokens.append((guesses[0] if guesses else 5) + 1)
    drafting.forget(one)
    return wrong


def test_guesses_that_are_always_wrong_end(runner):
    drafting = Drafting(draft_model(runner), Fixed(0.3))
    assert 0 < guess_wrong(drafting, 3, 40) < 20
    for first in range(4, 30):
        guess_wrong(drafting, first, 10)
    # Others are not begun with, until time for a try has been saved up.
    assert guess_wrong(drafting, 40, 10) == 0
    for _ in range(200):
        drafting.earn(1.0)
    assert 0 < guess_wrong(drafting, 41, 40) < 10


def test_a_draft_as_slow_as_its_model_is_never_asked(runner):
    drafting = Drafting(draft_model(runner), Fixed(1.0))
    one = sequence([5, 6, 7])
    one.tokens.append(4)
    for _ in range(50):
        drafting.earn(1.0)
        assert drafted(drafting, one, Fixed(1.0)) == []
    assert drafting.model.kv.used == 0
