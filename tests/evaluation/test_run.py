"""`hagane eval` against the same figures computed with transformers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hagane.evaluation.choices import read_questions
from hagane.evaluation.text import windows
from hagane.system.errors import InvalidRequestError
from hagane.text.hub import BUILTIN_MODELS
from transformers import AutoModelForCausalLM, AutoTokenizer

ARC = {
    "question": "What is a cat?",
    "choices": {"text": ["a time", "a small animal", "upon"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
PIQA = {"goal": "go out", "sol1": "Once upon a time", "sol2": "there", "label": 1}
LAMBADA = {"text": "Once upon a time, there was a"}
PLAIN = {"context": "今日は天気が良いので、", "choices": ["散歩に行きました。", "猫"], "answer": 0}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("evaluation")
    documents = [
        "今日は天気が良いので、散歩に行きました。" * 120,
        "Once upon a time",
        "a cat\n" * 9,
    ]
    texts = [f"What is {i} plus 1?" for i in range(12)]
    records = {
        "text": [{"text": text} for text in documents],
        "questions": [ARC, PIQA, PLAIN],
        "words": [LAMBADA, {"text": "Once upon a time, there was xylophone"}],
    }
    for i, text in enumerate(texts):
        choices = [f"It is {i + 1}.", "あの猫が好きです。", "The sun"]
        records["questions"].append({"context": text, "choices": choices, "answer": i % 3})
    for name, lines in records.items():
        text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
        (directory / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {name: directory / f"{name}.jsonl" for name in records}


@pytest.fixture(scope="module")
def results(files: dict[str, Path]) -> dict[str, dict]:
    command = [sys.executable, "-m", "hagane.cli", "eval", "hagane-mini", "--json", "--threads",
               "1", "--dtype", "float32", "--text", str(files["text"]),
               "--questions", str(files["questions"]), str(files["words"])]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    return {name: found[str(path)] for name, path in files.items()}


class Independent:
    """Log-probabilities by transformers, one text at a time."""

    def __init__(self, directory: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(directory)

    @torch.no_grad()
    def logprob(self, context: list[int], ids: list[int]) -> tuple[float, bool]:
        logits = self.model(torch.tensor([context + ids])).logits[0]
        own = logits.log_softmax(-1)[len(context) - 1 : -1]
        greedy = own.argmax(-1).tolist() == ids
        return own[torch.arange(len(ids)), ids].sum().item(), greedy

    def after(self, context: str, choice: str) -> tuple[float, bool]:
        given = self.tokenizer.encode(context)
        return self.logprob(given, self.tokenizer.encode(context + choice)[len(given) :])


@pytest.fixture(scope="module")
def independent() -> Independent:
    return Independent(BUILTIN_MODELS / "hagane-mini")


def test_bits_per_byte_and_perplexity(results, files, independent):
    longest, end = 1023, independent.tokenizer.eos_token_id
    nats = tokens = size = 0
    for line in files["text"].read_text(encoding="utf-8").splitlines():
        text = json.loads(line)["text"]
        ids = independent.tokenizer.encode(text)
        whole = [end, *ids]
        nats -= independent.logprob(whole[:1], whole[1:longest])[0]
        if rest := whole[longest:]:
            nats -= independent.logprob(whole[-longest : -len(rest)], rest)[0]
        tokens, size = tokens + len(ids), size + len(text.encode())
    assert tokens > 1100
    found = results["text"]
    assert (found["documents"], found["tokens"], found["bytes"]) == (3, tokens, size)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)
    assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-3)


def test_accuracy_by_likelihood_and_by_likelihood_per_character(results, files, independent):
    right = right_norm = 0
    questions = read_questions(files["questions"])
    for question in questions:
        values = [independent.after(question.context, c)[0] for c in question.choices]
        normed = [v / len(c.strip()) for v, c in zip(values, question.choices, strict=True)]
        right += values.index(max(values)) == question.answer
        right_norm += normed.index(max(normed)) == question.answer
    found = results["questions"]
    assert found["questions"] == len(questions) == 15
    assert found["accuracy"] == pytest.approx(right / 15)
    assert found["accuracy_norm"] == pytest.approx(right_norm / 15)
    assert found["truncated"] == 0


def test_last_words_are_right_when_greedy_decoding_gives_them(results, files, independent):
    greedy = [independent.after(q.context, q.choices[0])[1] for q in read_questions(files["words"])]
    assert greedy == [True, False]
    assert results["words"]["accuracy"] == 0.5


def test_questions_are_worded_as_the_harness_words_them(files):
    arc, piqa, plain, *_ = read_questions(files["questions"])
    assert arc.context == "Question: What is a cat?\nAnswer:"
    assert arc.choices == (" a time", " a small animal", " upon")
    assert arc.answer == 1
    assert piqa.context == "Question: go out\nAnswer:"
    assert piqa.answer == 1
    assert plain.context == "今日は天気が良いので、"
    word = read_questions(files["words"])[0]
    assert (word.context, word.choices) == ("Once upon a time, there was", (" a",))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "JSONDecodeError"),
        ('{"context": "a", "choices": ["b"]}', "answer"),
        ('{"context": "a", "choices": ["b"], "answer": 1}', "not among the choices"),
        ('{"question": "a", "choices": {"text": ["b"], "label": ["A"]}, "answerKey": "C"}', "'C'"),
        ('{"text": "word"}', "context is empty"),
        ("[]", "TypeError"),
    ],
)
def test_a_bad_question_names_its_line(tmp_path, line, reason):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(PLAIN) + "\n" + line)
    with pytest.raises(InvalidRequestError, match="line 2") as caught:
        read_questions(path)
    assert reason in str(caught.value)


def test_windows_cover_a_document_once_with_all_the_context_that_fits():
    cut = list(windows(range(10, 20), prefix=0, longest=5))
    assert [t for target in cut for t in target.tokens] == list(range(10, 20))
    assert [target.context for target in cut] == [(0,), (13,), (15, 16, 17)]
    assert max(len(target.tokens) for target in cut) == 4


@pytest.mark.parametrize("flags", [[], ["--text", "nowhere.txt"]])
def test_what_cannot_be_evaluated_is_said_at_once(flags):
    command = [sys.executable, "-m", "hagane.cli", "eval", "hagane-mini", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert ("nowhere.txt" if flags else "--text or --questions") in done.stderr


def test_graders_and_two_models_side_by_side(tiny_model_dir, tmp_path):
    plan = {
        "template": [{"role": "user", "content": "Say {{item.word}}"}],
        "testing_criteria": [
            {"type": "string_check", "name": "empty", "operation": "ne", "reference": "",
             "input": "{{sample.output_text}}"},
            {"type": "text_similarity", "name": "like", "evaluation_metric": "fuzzy_match",
             "input": "{{sample.output_text}}", "reference": "{{item.word}}"},
        ],
        "max_completion_tokens": 4,
    }  # fmt: skip
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "items.jsonl").write_text('{"word": "cat"}\n{"item": {"word": "dog"}}\n')
    command = [
        *(sys.executable, "-m", "hagane.cli", "eval", "hagane-mini", "--json", "--threads", "1"),
        *("--graders", str(tmp_path / "plan.json"), "--items", str(tmp_path / "items.jsonl")),
        *("--baseline", str(tiny_model_dir)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ours, theirs = found["hagane-mini"], found[str(tiny_model_dir)]
    assert ours["items"] == theirs["items"] == 2
    assert ours["scores"]["empty"] == [1, 1]
    assert all(0 <= score <= 1 for score in ours["scores"]["like"])
    both = found[f"hagane-mini against {tiny_model_dir}"]
    assert both["wins"] + both["ties"] + both["losses"] == 2
    assert both["win_rate"]["low"] <= both["win_rate"]["share"] <= both["win_rate"]["high"]
