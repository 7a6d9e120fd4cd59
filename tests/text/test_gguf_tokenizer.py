"""Tokenizers made of GGUF metadata give the ids of the tokenizers that the files were made from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import gguf
import pytest
import tokenizers
from hagane.system.errors import ModelError
from hagane.text.chat_template import ChatTemplate
from hagane.text.gguf_tokenizer import load_gguf_tokenizer
from hagane.text.pre_tokenizers import PATTERNS, byte_level
from hagane.text.tokenizer import Tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, trainers

from tests.support.gguf import write_gguf

TEXTS = [
    "Once upon a time",
    "今日は天気が良い 12345",
    " two  spaces\n\n x",
    "don't I'LL <|im_start|>",
]
REAL = os.environ.get("HAGANE_TEST_MODELS")


def _file(path: Path, **metadata: object) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        writer.add_key_value(f"tokenizer.ggml.{key}", value, _type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def _type(value: object) -> gguf.GGUFValueType:
    if isinstance(value, list):
        return gguf.GGUFValueType.ARRAY
    kinds = {bool: "BOOL", int: "UINT32", str: "STRING"}
    return gguf.GGUFValueType[kinds[type(value)]]


@pytest.fixture(scope="module")
def pair(tiny_model_dir, tmp_path_factory):
    path = write_gguf(tiny_model_dir, tmp_path_factory.mktemp("gguf") / "tiny.gguf")
    return Tokenizer.load(path), Tokenizer.load(tiny_model_dir)


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_bpe(pair, text):
    ours, theirs = pair
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    assert ours.eos_token_id == theirs.eos_token_id
    assert ours.special_ids == theirs.special_ids


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_text_survives(pair, text):
    ours, _ = pair
    assert ours.decode(ours.encode(text), skip_special_tokens=False) == text


def test_the_chat_template_comes_along(tiny_model_dir, tmp_path):
    path = write_gguf(tiny_model_dir, tmp_path / "tiny.gguf")
    messages = [{"role": "user", "content": "hi"}]
    rendered = [
        ChatTemplate.load(source, Tokenizer.load(source)).render(messages)
        for source in (path, tiny_model_dir)
    ]
    assert rendered[0] == rendered[1]


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_every_named_rule_cuts_text_without_losing_any(name):
    rule = byte_level(name)
    assert rule is not None
    for text in TEXTS:
        pieces = rule.pre_tokenize_str(text)
        ends = [0, *(end for _, (_, end) in pieces)]
        assert [start for _, (start, _) in pieces] == ends[:-1]
        assert ends[-1] == len(text)


def test_sentencepiece_bpe_merges_by_score(tmp_path):
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3, *[6] * 256]
    pieces = ["▁", "a", "b", "c", "ab", "bc", "▁a", "abc", "▁abc"]
    scores = [0.0] * len(tokens) + [-9.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0, -4.0, -5.0]
    path = _file(
        tmp_path / "x.gguf",
        model="llama", tokens=tokens + pieces, scores=scores,
        token_type=kinds + [1] * len(pieces), bos_token_id=1, eos_token_id=2, unknown_token_id=0,
    )  # fmt: skip
    tokenizer = Tokenizer.load(path)
    words = [tokenizer.token_text(i) for i in tokenizer.encode("abc ab", add_special_tokens=False)]
    # b and c first, whose token has the highest score; then a and bc.
    assert words == [" abc", " a", "b"] or words == [" abc", " ", "ab"]
    assert tokenizer.encode("x")[:1] == [1]
    assert tokenizer.decode(tokenizer.encode("aé")) == "aé"


def test_word_pieces(tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁hello", "▁wor", "ld", "▁,", "s"]
    path = _file(
        tmp_path / "x.gguf",
        model="bert", tokens=tokens, token_type=[3, 3, 3, 3, 1, 1, 1, 1, 1],
        cls_token_id=2, seperator_token_id=3, unknown_token_id=1,
    )  # fmt: skip
    backend, _ = load_gguf_tokenizer(path)
    assert backend.encode("Hello, worlds zzz").ids == [2, 4, 7, 5, 6, 8, 1, 3]


def test_unigram(tmp_path):
    theirs = tokenizers.Tokenizer(models.Unigram())
    theirs.normalizer = normalizers.Sequence([])
    theirs.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, unk_token="<unk>", special_tokens=["<unk>", "</s>"], show_progress=False
    )
    theirs.train_from_iterator(TEXTS * 30, trainer)
    pieces = sorted(theirs.get_vocab().items(), key=lambda item: item[1])
    scores = dict(json.loads(theirs.to_str())["model"]["vocab"])
    path = _file(
        tmp_path / "x.gguf",
        model="t5", tokens=[piece for piece, _ in pieces],
        scores=[float(scores[piece]) for piece, _ in pieces],
        token_type=[2, 3, *[1] * (len(pieces) - 2)], unknown_token_id=0, eos_token_id=1,
    )  # fmt: skip
    backend, _ = load_gguf_tokenizer(path)
    for text in TEXTS:
        assert backend.encode(text).ids == [*theirs.encode(text).ids, 1]


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({}, "no tokenizer.ggml.tokens"),
        ({"model": "gpt2", "tokens": ["a"], "pre": "unheard-of"}, "'unheard-of'; known are"),
        ({"model": "rwkv", "tokens": ["a"]}, "kind 'rwkv'"),
        ({"model": "gpt2", "tokens": ["a"], "merges": ["ab"]}, "not two tokens"),
        ({"model": "gpt2", "tokens": ["a"], "merges": ["a b"]}, "no usable tokenizer"),
        ({"model": "gpt2", "tokens": ["a"], "token_type": [1, 1]}, "list of 1 numbers"),
        ({"model": "gpt2", "tokens": ["a"], "eos_token_id": 5}, "outside its vocabulary"),
        ({"model": 3, "tokens": ["a"]}, "no text in tokenizer.ggml.model"),
        ({"model": "gpt2", "tokens": [1]}, "no list of texts"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, metadata, problem):
    with pytest.raises(ModelError, match=problem):
        load_gguf_tokenizer(_file(tmp_path / "x.gguf", **metadata))


@pytest.mark.skipif(not REAL, reason="HAGANE_TEST_MODELS names no folder of real models")
@pytest.mark.parametrize("name", ["qwen-0.5b", "gemma-270m"])
def test_real_files_beside_transformers_conversion(name):
    backend, _ = load_gguf_tokenizer(Path(REAL) / f"{name}.gguf")
    theirs = tokenizers.Tokenizer.from_file(str(Path(REAL) / "hf" / name / "tokenizer.json"))
    text = "".join(p.read_text() for p in sorted(Path("docs").glob("*.md")))
    text = (text * (1 + 1_000_000 // len(text)))[:1_000_000]
    expected = theirs.encode(text, add_special_tokens=False).ids
    assert backend.encode(text, add_special_tokens=False).ids == expected
