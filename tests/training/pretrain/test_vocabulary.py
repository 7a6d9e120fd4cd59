"""The tokenizer of a new model."""

from __future__ import annotations

from hagane.training.pretrain.vocabulary import token_bytes, train_tokenizer


def test_bytes_of_tokens_add_up_to_the_text():
    text = "今日は🐈 the cat\n"
    tokenizer = train_tokenizer([text * 3, "日本語"], 300)
    ids = tokenizer.encode(text).ids
    assert token_bytes(tokenizer)[ids].sum() == len(text.encode())
    assert token_bytes(tokenizer)[tokenizer.token_to_id("<|im_end|>")] == 0
