"""Streaming text equals the text decoded at once, whatever the pieces."""

from __future__ import annotations

import pytest
import tokenizers
from hagane.generation.detokenizer import Detokenizer
from hagane.generation.stop import StopStrings
from hagane.text.tokenizer import Tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

TEXT = [
    "The cat sat on the mat. ",
    "今日は天気が良いので、散歩に行きました。",
    "naïve café 🐈‍⬛👩‍👩‍👧",
] * 10


def backend_of_bytes() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken("<|end|>", special=True)],
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    return backend


def byte_level() -> Tokenizer:
    return Tokenizer(backend_of_bytes(), {})


def byte_fallback() -> Tokenizer:
    """The SentencePiece kind that Llama 2 has."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", *sorted({c for text in TEXT[:2] for c in text if c != " "})]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(backend, {})


TOKENIZERS = {"byte-level": byte_level(), "byte-fallback": byte_fallback()}
kinds = pytest.mark.parametrize("kind", TOKENIZERS)


def stream(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.push([i]) for i in ids), detokenizer.finish()]


@kinds
@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60))
def test_stream_equals_one_shot_decode(kind, text):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text)
    assert "".join(stream(Detokenizer(tokenizer), ids)) == tokenizer.decode(ids)


@kinds
@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="今日は良🐈👩‍👧é天気 ab", min_size=1, max_size=40))
def test_no_half_character_is_ever_shown(kind, text):
    tokenizer = TOKENIZERS[kind]
    pieces = stream(Detokenizer(tokenizer), tokenizer.encode(text))
    assert not any("\ufffd" in piece for piece in pieces)


@kinds
@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="abc 今日", max_size=40), stop=st.text("abc 今", min_size=1, max_size=3)
)
def test_stop_strings_cut_and_never_leak(kind, text, stop):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text)
    whole = tokenizer.decode(ids)
    detokenizer = Detokenizer(tokenizer, stop=StopStrings.prepare([stop]))
    shown = "".join(stream(detokenizer, ids))
    assert shown == whole.split(stop)[0]
    assert detokenizer.stopped == (stop if stop in whole else None)


def test_token_bytes_are_exact():
    tokenizer = TOKENIZERS["byte-level"]
    text = "今日は🐈 the cat"
    raw = b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode(text))
    assert raw.decode() == text


def raw_ids(tokenizer: Tokenizer, raw: bytes) -> list[int]:
    single = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    return [single[bytes([byte])] for byte in raw]


BROKEN = b"\x80\x80\x80\x80\x80\xe7\xab\x80"


@kinds
@settings(max_examples=200, deadline=None)
@example(raw=BROKEN, cut=3)
@example(raw=b"\xe7\xab", cut=1)
@example(raw=b"\xf0\x9f\x90a\xe7\xab\xed\xa0\x80", cut=2)
@given(raw=st.binary(max_size=24), cut=st.integers(0, 24))
def test_any_bytes_stream_as_python_decodes_them(kind, raw, cut):
    tokenizer = TOKENIZERS[kind]
    ids = raw_ids(tokenizer, raw.replace(b" ", b"_"))
    expected = raw.replace(b" ", b"_").decode("utf-8", errors="replace")
    pieces = Detokenizer(tokenizer)
    assert pieces.push(ids[:cut]) + pieces.push(ids[cut:]) + pieces.finish() == expected
    assert "".join(stream(Detokenizer(tokenizer), ids)) == expected


def test_a_stop_string_in_the_last_token_is_cut_though_half_a_character_follows():
    tokenizer = TOKENIZERS["byte-level"]
    ids = raw_ids(tokenizer, "に".encode() + b"\xe3\x81")
    detokenizer = Detokenizer(tokenizer, stop=StopStrings.prepare(["に"]))
    assert detokenizer.push(ids) + detokenizer.finish() == ""
    half = Detokenizer(tokenizer, stop=StopStrings.prepare(["\ufffd"]))
    assert half.push(ids) + half.finish() == "に"
    assert half.stopped == "\ufffd"


def test_ids_that_pad_the_vocabulary_are_empty():
    for tokenizer in TOKENIZERS.values():
        assert tokenizer.token_bytes(tokenizer.vocab_size + 7) == b""
        assert Detokenizer(tokenizer).push([tokenizer.vocab_size + 7]) == ""


@kinds
@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=200))
def test_a_text_never_has_fewer_tokens_than_claimed(kind, text):
    tokenizer = TOKENIZERS[kind]
    count = len(tokenizer.encode(text, add_special_tokens=False))
    least = tokenizer.least_tokens(text, limit=5)
    assert least <= 5 or least <= count


@kinds
def test_a_long_text_is_counted_without_encoding_all_of_it(kind):
    tokenizer = TOKENIZERS[kind]
    assert tokenizer.least_tokens("今日は" * 1_000_000, limit=100) > 100
    assert tokenizer.least_tokens("the cat sat " * 500_000, limit=100) > 100


def test_truncation_and_padding_of_the_file_are_not_obeyed():
    backend = backend_of_bytes()
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    assert len(Tokenizer(backend, {}).encode("今日は " * 10)) == len(
        TOKENIZERS["byte-level"].encode("今日は " * 10)
    )
