"""Train a new model's tokenizer, and count the bytes of its tokens."""

from __future__ import annotations

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from hagane.data.documents import END_OF_TEXT, TURN_END, TURN_START


def train_tokenizer(texts: list[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Train a byte-level BPE (Sennrich et al., 2016; Radford et al., 2019)."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True) for t in (END_OF_TEXT, TURN_START, TURN_END)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_bytes(tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    """int64 [vocab]: number of UTF-8 bytes that each token of a byte-level tokenizer decodes to.

    Special tokens count as 0.
    """
    special = {t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special}
    sizes = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    for token, index in tokenizer.get_vocab().items():
        # The byte-level alphabet writes every byte as one character.
        sizes[index] = 0 if token in special else len(token)
    return sizes
