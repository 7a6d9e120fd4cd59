"""The tokens whose rows of the embedding are trained, by their ids. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hagane.system.errors import TrainingError
from hagane.text.tokenizer import Tokenizer


def token_ids(model: Path, tokens: Sequence[str]) -> tuple[int, ...]:
    """The id of each text in the vocabulary of `model`, a directory or a GGUF file.

    Raises TrainingError for one that is not a single token.
    """
    if not tokens:
        return ()
    tokenizer = Tokenizer.load(model)
    found = []
    for text in tokens:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise TrainingError(
                f"trained_tokens: {text!r} is {len(ids)} tokens of the model; `hagane widen` makes "
                "a copy of the model in which it is one",
                code="invalid_model",
            )
        found += ids
    return tuple(found)
