"""Streaming text equals the text decoded at once, whatever the pieces."""

from __future__ import annotations

import pytest
import tokenizers
from hagane.generation.detokenizer import Detokenizer
from hagane.text.tokenizer import Tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

TEXT = [
    "The cat sat on the mat. ",
    "今日は天気が良いので、散歩に行きました。",
    "naïve café 🐈‍⬛👩‍👩‍👧",
] * 10


def byte_level() -> Tokenizer:
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
    return Tokenizer(backend, {})


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
    detokenizer = Detokenizer(tokenizer, stop=[stop])
    shown = "".join(stream(detokenizer, ids))
    assert shown == whole.split(stop)[0]
    assert detokenizer.stopped == (stop if stop in whole else None)


def test_token_bytes_are_exact():
    tokenizer = TOKENIZERS["byte-level"]
    text = "今日は🐈 the cat"
    raw = b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode(text))
    assert raw.decode() == text
