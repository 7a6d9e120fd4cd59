"""Reports of good and bad files."""

from __future__ import annotations

import json

import pytest
from hagane.training.finetune.examples import inspect, load
from hagane.training.finetune.spec import FineTuneSpec

LINE = json.dumps({"prompt": "Say {}", "completion": "{} " * 5})


def lines(count):
    return "\n".join(LINE.replace("{}", str(i)) for i in range(count))


def test_a_good_file(tiny_model_dir, tmp_path):
    path = tmp_path / "good.jsonl"
    path.write_text(lines(40) + "\n\n" + lines(2))
    report = inspect(path, tiny_model_dir, "supervised")
    assert (report.examples, report.duplicates, report.truncated) == (42, 2, 0)
    assert report.problems == [] and report.total_problems == 0
    assert 0 < report.trained_tokens < report.tokens
    assert report.steps > 0 and report.seconds > 0 and report.memory_bytes > 0


def test_long_examples_are_cut(tiny_model_dir, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(lines(4) + "\n" + json.dumps({"text": "a cat " * 100}))
    report = inspect(path, tiny_model_dir, "supervised", sequence_length=64)
    assert report.truncated == 1 and report.total_problems == 0
    path.write_text(lines(4) + "\n" + json.dumps({"prompt": "a cat " * 100, "completion": "x"}))
    report = inspect(path, tiny_model_dir, "supervised", sequence_length=64)
    assert report.problems == [(5, "has nothing to learn in its first 64 tokens")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 distinct examples"),
        ("{}".encode("utf-16"), "UTF-16"),
        (b"\x00\x01\x02", "zero byte"),
        (b'{"text": "\xff"}', "byte 0xff at offset 10"),
        (LINE.encode(), "at least 2"),
    ],
)
def test_files_that_cannot_be_used(tiny_model_dir, tmp_path, content, reason):
    path = tmp_path / "bad"
    path.write_bytes(content)
    report = inspect(path, tiny_model_dir, "supervised")
    assert reason in report.problems[0][1]


def test_the_first_hundred_problems_are_listed_and_all_counted(tiny_model_dir, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(lines(3) + "\n" + "nonsense\n" * 150)
    report = inspect(path, tiny_model_dir, "supervised")
    assert report.total_problems == 150 and len(report.problems) == 100
    assert report.problems[0][0] == 4 and report.examples == 3


def test_equal_examples_are_never_on_both_sides(tiny_model_dir, tmp_path):
    path = tmp_path / "twice.jsonl"
    path.write_text("\n".join([lines(40)] * 3))
    data = load(FineTuneSpec(model=tiny_model_dir, training_file=path))
    held = {example.digest for example in data.validation}
    assert len(data.validation) == len(held) == 10
    assert len(data.training) == 3 * 30
    assert held.isdisjoint(example.digest for example in data.training)


def test_answers_that_are_cut_to_the_same_are_no_preference(tiny_model_dir, tmp_path):
    path = tmp_path / "pairs.jsonl"
    pair = {"prompt": "Say", "chosen": "a cat " * 50 + "one", "rejected": "a cat " * 50 + "two"}
    path.write_text("\n".join(json.dumps(pair | {"prompt": f"Say {i}"}) for i in range(3)))
    assert not inspect(path, tiny_model_dir, "dpo").problems
    report = inspect(path, tiny_model_dir, "dpo", sequence_length=32)
    assert report.problems[0] == (1, "has two answers that are the same in their first 32 tokens")


@pytest.mark.parametrize(
    ("count", "held_out", "warned"), [(2, 1, True), (60, 15, True), (120, 16, False)]
)
def test_enough_is_held_out_or_it_is_said(tiny_model_dir, tmp_path, count, held_out, warned):
    path = tmp_path / "small.jsonl"
    path.write_text(lines(count))
    report = inspect(path, tiny_model_dir, "supervised")
    assert report.held_out == held_out
    assert bool(report.warnings) == warned


def test_judged_answers_need_a_label(tiny_model_dir, tmp_path):
    path = tmp_path / "judged.jsonl"
    judged = [json.loads(lines(1)) | {"label": label} for label in (True, False, "yes", None)]
    path.write_text("\n".join(map(json.dumps, judged)))
    report = inspect(path, tiny_model_dir, "kto")
    # The same answer with another label is another example.
    assert report.examples == 2 and report.duplicates == 0
    assert report.problems == [(3, "label is a text; it must be true or false"),
                               (4, "label is missing; it must be true or false")]  # fmt: skip
