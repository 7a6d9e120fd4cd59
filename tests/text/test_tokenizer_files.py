"""Tokenizers as they are found: limits left over, marks, wrong shapes, expressions that explode."""

from __future__ import annotations

import json
import time

import pytest
import tokenizers
from hagane.system.errors import InvalidRequestError, ModelError
from hagane.text.tokenizer import Tokenizer

TEXT = "Once upon a time there was a small cat that liked the sea. " * 4


@pytest.fixture
def changed(tiny_model_dir, tmp_path):
    """The tiny model's tokenizer with other settings, in a directory of its own."""

    def make(**settings):
        raw = json.loads((tiny_model_dir / "tokenizer.json").read_text(encoding="utf-8"))
        (tmp_path / "tokenizer.json").write_text(json.dumps(raw | settings), encoding="utf-8")
        return tmp_path

    return make


def split(pattern):
    return {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }
    }


def test_limits_of_training_do_not_cut_prompts(tiny_model_dir, changed):
    directory = changed(
        truncation={"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>",
        },
    )  # fmt: skip
    ours, plain = Tokenizer.load(directory), Tokenizer.load(tiny_model_dir)
    for text in (TEXT, "a"):
        assert ours.encode(text) == plain.encode(text)
        assert ours.encode_spans([text]) == plain.encode_spans([text])


def test_byte_order_marks_are_read_over(tiny_model_dir, changed):
    directory = changed()
    path = directory / "tokenizer.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (directory / "tokenizer_config.json").write_text('\ufeff{"eos_token": "<|im_end|>"}')
    ours = Tokenizer.load(directory)
    assert ours.encode(TEXT) == Tokenizer.load(tiny_model_dir).encode(TEXT)
    assert ours.eos_token_id is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "must hold a JSON object, not a list"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"{", "cannot be read as JSON"),
    ],
)
def test_settings_of_wrong_shapes_are_one_clear_line(changed, content, message):
    directory = changed()
    (directory / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(ModelError, match=rf"tokenizer_config\.json .*{message}") as caught:
        Tokenizer.load(directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "pattern",
    ["(a|aa)+$b", r"(\p{L}+)+\s\1", r"(\s+)+[^\s]x", r"\s*\s*\s*\s*(?=\d)", r"(?:\p{N}+,?)+;"],
)
def test_expressions_that_explode_are_refused_at_load(changed, pattern):
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"tokenizer\.json: a regular expression"):
        Tokenizer.load(changed(**split(pattern)))
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("pattern", [r"\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+|[^\s\p{L}\p{N}]+", r"\d"])
def test_other_expressions_are_used(changed, pattern):
    assert Tokenizer.load(changed(**split(pattern))).encode("a 1 cat")


def test_a_text_that_the_library_gives_up_is_refused():
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex("(a|aa)+$b"), behavior="isolated"
    )
    with pytest.raises(InvalidRequestError, match="cannot read this text"):
        Tokenizer(backend, {}).encode("a" * 100)
