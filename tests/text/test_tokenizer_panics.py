"""Texts that the tokenizers library gives up: each is the caller's error, and nobody else's."""

from __future__ import annotations

import pytest
import tokenizers
from hagane.system.errors import InvalidRequestError
from hagane.text.tokenizer import Tokenizer
from tokenizers import models, pre_tokenizers

# The search for a last `y` backtracks until the library's limit, and then panics.
GIVEN_UP = "x" * 60


@pytest.fixture(scope="module")
def backend():
    backend = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "y": 1}, unk_token="[UNK]"))
    pattern = tokenizers.Regex("(x+x+)+y")
    backend.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    return backend


@pytest.fixture(scope="module")
def tokenizer(backend):
    return Tokenizer(backend, {})


def test_the_library_gives_this_text_up(backend):
    """Otherwise the tests below would pass without a panic."""
    with pytest.raises(BaseException, match="retry-limit") as caught:
        backend.encode(GIVEN_UP)
    assert not isinstance(caught.value, Exception)


@pytest.mark.parametrize(
    "ask",
    [lambda t: t.encode(GIVEN_UP), lambda t: t.least_tokens(GIVEN_UP, 10)],
    ids=["encode", "least_tokens"],
)
def test_a_panic_is_an_error_of_the_request(tokenizer, ask):
    with pytest.raises(InvalidRequestError, match=r"cannot read this text.*retry-limit"):
        ask(tokenizer)


def test_of_a_batch_only_the_text_that_panics_fails(tokenizer):
    first, second, third = tokenizer.encode_spans(["y", GIVEN_UP, "yy"])
    assert first == ([1], [(0, 1)])
    assert isinstance(second, InvalidRequestError)
    assert third[0] == [0]
