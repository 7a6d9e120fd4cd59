"""How a model makes an embedding of a text, as sentence-transformers' files say.

https://sbert.net/docs/package_reference/sentence_transformer/models.html
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from hagane.models.embedding_modules import embedding_modules
from hagane.system.errors import ModelError
from hagane.system.files import read_text
from hagane.system.shapes import shaped

_LARGEST = 1 << 20
# A text's embedding: the hidden state of its last or first token, or the mean of all of them; or
# the score that a cross-encoder gives to a pair of texts.
Pooling = Literal["last", "first", "mean", "score"]


class _PoolingFile(msgspec.Struct, frozen=True):
    """The ways to pool that are read; others are refused."""

    pooling_mode_cls_token: bool = False
    pooling_mode_mean_tokens: bool = False
    pooling_mode_lasttoken: bool = False
    pooling_mode_max_tokens: bool = False
    pooling_mode_mean_sqrt_len_tokens: bool = False
    pooling_mode_weightedmean_tokens: bool = False


@dataclass(frozen=True)
class EmbeddingStyle:
    """Which hidden states stand for a text, and whether the vector is scaled to length 1."""

    pooling: Pooling
    normalize: bool = True

    @classmethod
    def load(cls, directory: Path, *, default: Pooling, dense: bool = False) -> EmbeddingStyle:
        """That of the model in `directory`; `default` where its files name none.

        With `dense` the model computes linear layers after the pooling, as encoders do.
        Raises ModelError for files that require something unsupported.
        """
        found = {step.kind: step for step in embedding_modules(directory)}
        if not found:
            return cls(default)
        if "Dense" in found and not dense:
            raise ModelError(f"{directory}: a dense layer after the pooling is not supported")
        pooling = _pooling(found["Pooling"].folder(directory) / "config.json")
        return cls(pooling, "Normalize" in found)


def _pooling(path: Path) -> Pooling:
    try:
        raw = msgspec.json.decode(read_text(path, _LARGEST), type=dict[str, object])
    except msgspec.DecodeError as error:
        raise ModelError(f"{path}: {error}") from None
    stored = shaped(raw, _PoolingFile, str(path))
    asked = [name for name in stored.__struct_fields__ if getattr(stored, name)]
    supported: dict[str, Pooling] = {
        "pooling_mode_cls_token": "first",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_lasttoken": "last",
    }
    if len(asked) != 1 or asked[0] not in supported:
        raise ModelError(f"{path} asks for {' and '.join(asked) or 'no pooling'}; {_WAYS}")
    return supported[asked[0]]


_WAYS = "supported are the mean, the first and the last token, one of them"
