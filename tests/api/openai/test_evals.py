"""OpenAI's evals API through the stock client, against a real server."""

from __future__ import annotations

import json
import time

import httpx
import openai
import pytest

from tests.support.server import ADMIN_KEY

PROGRAM = "def grade(sample, item): return len(sample['output_text']) > 0"
CRITERIA = [
    {"type": "string_check", "name": "same", "input": "{{sample.output_text}}",
     "reference": "{{item.answer}}", "operation": "eq"},
    {"type": "python", "name": "says something", "source": PROGRAM},
]  # fmt: skip
CONFIG = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True}
TEMPLATE = {
    "type": "template", "template": [{"role": "user", "content": "{{item.question}}"}],
}  # fmt: skip


def wait(admin: openai.OpenAI, eval_id: str, run_id: str, *statuses: str):
    deadline = time.monotonic() + 60
    while True:
        run = admin.evals.runs.retrieve(run_id, eval_id=eval_id)
        if run.status in statuses:
            return run
        assert time.monotonic() < deadline, run
        assert run.status in ("queued", "in_progress"), run
        time.sleep(0.1)


@pytest.fixture
def made(admin):
    found = admin.evals.create(
        name="sameness", data_source_config=CONFIG, testing_criteria=CRITERIA
    )
    yield found
    admin.evals.delete(found.id)


def run_of(admin, made, answers: list[str], **fields):
    content = [
        {"item": {"question": f"Question {n}", "answer": answer}}
        for n, answer in enumerate(answers)
    ]
    source = {
        "type": "completions", "model": "tiny", "input_messages": TEMPLATE,
        "sampling_params": {"temperature": 0, "max_completion_tokens": 4},
        "source": {"type": "file_content", "content": content}, **fields,
    }  # fmt: skip
    run = admin.evals.runs.create(made.id, name="r", data_source=source)
    return wait(admin, made.id, run.id, "completed")


def said(admin, question: str) -> str:
    answer = admin.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": question}], max_tokens=4, temperature=0
    )
    return answer.choices[0].message.content


def test_a_run_asks_the_model_and_grades_its_answers(admin, made):
    right = said(admin, "Question 0")
    run = run_of(admin, made, [right, "certainly not this"])
    counts = run.result_counts
    assert (counts.total, counts.passed, counts.failed, counts.errored) == (2, 1, 1, 0)
    by_name = {c.testing_criteria: (c.passed, c.failed) for c in run.per_testing_criteria_results}
    assert by_name == {"same": (1, 1), "says something": (2, 0)}
    items = admin.evals.runs.output_items.list(run.id, eval_id=made.id).data
    first = next(item for item in items if item.datasource_item_id == 0)
    assert (first.status, first.sample.output[0].content) == ("pass", right)
    again = admin.evals.runs.output_items.retrieve(first.id, eval_id=made.id, run_id=run.id)
    assert again.datasource_item == first.datasource_item
    failed = admin.evals.runs.output_items.list(run.id, eval_id=made.id, status="fail").data
    assert [item.datasource_item_id for item in failed] == [1]


def test_two_runs_side_by_side(admin, admin_server, made):
    right = [said(admin, f"Question {n}") for n in range(4)]
    baseline = run_of(admin, made, [right[0], "no", "no", "no"])
    candidate = run_of(admin, made, ["no", *right[1:]])
    answer = httpx.get(
        f"{admin_server.url}/v1/evals/{made.id}/compare",
        params={"baseline": baseline.id, "candidate": candidate.id},
        headers={"Authorization": f"Bearer {ADMIN_KEY}"},
    ).json()
    assert (answer["items"], answer["wins"], answer["losses"], answer["ties"]) == (4, 3, 1, 0)
    assert answer["win_rate"]["low"] < 0.75 == answer["win_rate"]["share"]
    assert answer["difference"]["share"] == 0.5
    assert answer["per_testing_criteria"]["says something"]["ties"] == 4


def test_a_model_grades_and_answers_that_are_there_are_graded(admin, admin_server):
    rater = {"type": "score_model", "name": "rated", "model": "tiny", "range": [0, 10],
             "input": [{"role": "user", "content": "Rate {{sample.output_text}}"}],
             "sampling_params": {"max_completion_tokens": 4}}  # fmt: skip
    made = admin.evals.create(
        data_source_config=CONFIG, testing_criteria=[CRITERIA[0], rater], metadata={"a": "b"}
    )
    lines = [{"item": {"answer": "yes"}, "sample": {"output_text": text}} for text in ("yes", "no")]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = admin.files.create(file=("items.jsonl", data), purpose="fine-tune")
    run = admin.evals.runs.create(
        made.id, data_source={"type": "jsonl", "source": {"type": "file_id", "id": file.id}}
    )
    done = wait(admin, made.id, run.id, "completed")
    # The random model rates with words: an error of each item, not of the run.
    assert done.result_counts.total == 2
    items = admin.evals.runs.output_items.list(run.id, eval_id=made.id).data
    graded = {item.results[0].passed for item in items if item.results}
    assert graded == {True, False}
    assert admin.evals.update(made.id, name="other").name == "other"
    assert made.id in [found.id for found in admin.evals.list(limit=100).data]
    admin.evals.runs.delete(run.id, eval_id=made.id)
    admin.evals.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        admin.evals.retrieve(made.id)


def test_what_goes_wrong_is_told(admin, made):
    for source, status in (
        ({"type": "completions", "model": "nowhere", "input_messages": TEMPLATE,
          "source": {"type": "file_content", "content": []}}, 404),
        ({"type": "completions", "source": {"type": "file_content", "content": []}}, 400),
        ({"type": "jsonl", "source": {"type": "file_id", "id": "file-nothing"}}, 404),
        ({"type": "jsonl", "source": {"type": "file_content"}}, 400),
        ({"type": "responses", "source": {"type": "file_content"}}, 400),
    ):  # fmt: skip
        with pytest.raises(openai.APIStatusError) as error:
            admin.evals.runs.create(made.id, data_source=source)
        assert error.value.status_code == status, source
    wrong = {**CRITERIA[0], "reference": "{{item.nothing}}"}
    broken = admin.evals.create(data_source_config=CONFIG, testing_criteria=[wrong])
    run = run_of(admin, broken, ["a"])
    assert run.result_counts.errored == 1
    (item,) = admin.evals.runs.output_items.list(run.id, eval_id=broken.id).data
    assert "item.nothing" in item.sample.error.message
    with pytest.raises(openai.ConflictError):
        admin.evals.runs.cancel(run.id, eval_id=broken.id)
    with pytest.raises(openai.BadRequestError):
        admin.evals.create(data_source_config=CONFIG, testing_criteria=[{"type": "magic"}])
