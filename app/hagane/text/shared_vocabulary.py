"""Whether two models name the same tokens by the same ids."""

from __future__ import annotations

from pathlib import Path

from hagane.system.errors import ConfigurationError
from hagane.text.tokenizer import Tokenizer, read_tokenizer_json


def require_same_vocabulary(model: Path, draft: Path) -> None:
    """Raises ConfigurationError if a draft's tokens are others than the model's.

    Raises ModelError for a tokenizer that cannot be read. Takes most of a second where the files
    differ.
    """
    if read_tokenizer_json(model) == read_tokenizer_json(draft):
        return
    ours, theirs = (Tokenizer.load(path).token_ids() for path in (model, draft))
    if ours == theirs:
        return
    if len(ours) != len(theirs):
        difference = f"it has {len(theirs)} tokens, {model.name} has {len(ours)}"
    else:
        token = next(token for token, number in ours.items() if theirs.get(token) != number)
        difference = (
            f"both have {len(ours)} tokens, but {token!r} is {ours[token]} in {model.name} and "
            f"{theirs.get(token, 'none')} in {draft.name}"
        )
    raise ConfigurationError(
        f"draft_model {draft.name} has another vocabulary: {difference}. Take a smaller model of "
        "the same family"
    )
