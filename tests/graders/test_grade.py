"""Graders one by one; models are asked in tests/api/openai/test_evals.py."""

from __future__ import annotations

import pytest
from hagane.graders.arithmetic import check_formula, compute_formula
from hagane.graders.grade import Grading
from hagane.graders.spec import Grader
from hagane.system.errors import InvalidRequestError
from pydantic import TypeAdapter, ValidationError

READ = TypeAdapter(Grader)
ITEM, SAMPLE = {"want": "Paris", "list": [{"a": 1}]}, {"output_text": "It is Paris."}


async def said_seven(model, messages, parameters) -> str:
    assert (model, messages[0]["content"]) == ("judge", "Rate: It is Paris.")
    return "I would say 7 out of... 8.5"


async def grade(**fields):
    return await Grading(said_seven).grade(
        READ.validate_python({"name": "g", **fields}), ITEM, SAMPLE
    )


CHECK = {"type": "string_check", "input": "{{sample.output_text}}", "reference": "{{ item.want }}"}


@pytest.mark.parametrize(("operation", "score"), [("eq", 0), ("ne", 1), ("like", 1), ("ilike", 1)])
async def test_string_checks(operation, score):
    found = await grade(**CHECK, operation=operation)
    assert (found.score, found.passed) == (score, bool(score))


async def test_likeness_and_thresholds():
    like = {"type": "text_similarity", "input": "ab", "evaluation_metric": "fuzzy_match"}
    found = await grade(**like, reference="abab", pass_threshold=0.7)
    assert found.score == pytest.approx(2 / 3)
    assert not found.passed


async def test_a_model_s_opinion_is_its_last_number_within_the_range():
    asked = {"type": "score_model", "model": "judge", "range": [1, 8],
             "input": [{"role": "user", "content": "Rate: {{sample.output_text}}"}]}  # fmt: skip
    found = await grade(**asked)
    assert (found.score, found.passed) == (8, True)


async def test_several_graders_make_one_score():
    parts = {"exact": {"name": "a", **CHECK, "operation": "eq"},
             "holds": {"name": "b", **CHECK, "operation": "like"},
             "program": {"name": "c", "type": "python",
                         "source": "def grade(sample, item): return 1"}}  # fmt: skip
    found = await grade(
        type="multi", graders=parts, calculate_output="(exact + holds + min(program, 3)) / 4"
    )
    assert found.score == 0.5


@pytest.mark.parametrize("path", ["item.nothing", "sample", "item.list.7.a", "item.want.x"])
async def test_a_place_that_leads_nowhere_is_named(path):
    if path == "sample":
        assert (await grade(**{**CHECK, "input": "{{sample}}"}, operation="like")).passed
        return
    with pytest.raises(InvalidRequestError, match=path):
        await grade(**{**CHECK, "input": f"{{{{{path}}}}}"}, operation="eq")


@pytest.mark.parametrize(
    "formula",
    ["a +", "b", "a.real", "a[0]", "__import__('os')", "a ** 99", "'x'", "min()", "a if a else 1",
     "lambda: 1", "+".join(["a"] * 300), "(" * 500, "True"],
)  # fmt: skip
def test_what_is_no_formula(formula):
    with pytest.raises(ValueError):
        check_formula(formula, frozenset({"a"}))


def test_formulas_without_a_value():
    for formula in ("1 / a", "log(a)", "exp(1000)", "sqrt(a - 1)"):
        check_formula(formula, frozenset({"a"}))
        with pytest.raises(ValueError):
            compute_formula(formula, {"a": 0.0})


def test_graders_that_do_not_exist_are_refused():
    for wrong in (
        {"type": "string_check", "name": "x"},
        {"type": "magic", "name": "x"},
        {**CHECK, "name": "x", "operation": "about"},
        {"type": "multi", "name": "x", "graders": {}, "calculate_output": "1"},
        {"type": "score_model", "name": "x", "model": "m", "input": [], "range": [1, 0]},
    ):
        with pytest.raises(ValidationError):
            READ.validate_python(wrong)
