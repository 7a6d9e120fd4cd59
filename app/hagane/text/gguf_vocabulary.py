"""A tokenizer as the metadata of a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from hagane.system.errors import ConfigurationError
from hagane.text.pre_tokenizers import PATTERNS, byte_level
from hagane.text.tokenizer import Tokenizer
from hagane.weights.sources.config import is_gguf
from hagane.weights.sources.gguf.eos import CONTROL, USER_DEFINED
from hagane.weights.sources.gguf.file import GGUFFile, shard_paths

_NORMAL, _UNUSED = 1, 5
# Text that each rule cuts another way.
_PROBE = (
    "I'm we'LL don't 1234567 x1y22 \n\n \n  a\tb   c  --== ...!!!\r\n/path/to "
    "日本語です。 한국어 ไทย e\u0301 CamelCase HTTPServer $+<=> ½ \u0663\u0664 😀 _x_ (y)"
)
_NAMES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def gguf_vocabulary(model: Path, size: int, template: str | None) -> dict[str, Any]:
    """Metadata pairs of a model's tokenizer, filled up to `size` tokens.

    Raises ConfigurationError for a kind that is not written: byte-level BPE is, and whatever came
    from a GGUF file.
    """
    if is_gguf(model):
        file = GGUFFile(shard_paths(model)[0])
        pairs = {key: file.get(key) for key in file.keys if key.startswith("tokenizer.")}
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in pairs.items()}
    tokenizer = Tokenizer.load(model)
    stored = json.loads(tokenizer.to_json())
    if stored["model"]["type"] != "BPE" or stored["decoder"]["type"] != "ByteLevel":
        raise ConfigurationError(f"{model}: only byte-level BPE tokenizers are written as GGUF")
    tokens = {i: (token, _NORMAL) for token, i in stored["model"]["vocab"].items()}
    for added in stored["added_tokens"]:
        kind = CONTROL if added["special"] else USER_DEFINED
        tokens[added["id"]] = added["content"], kind
    listed = [tokens.get(i, (f"[PAD{i}]", _UNUSED)) for i in range(size)]
    ids = {token: i for i, (token, _) in tokens.items()}
    merges = stored["model"]["merges"]
    pairs = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _rule(model, stored),
        "tokenizer.ggml.tokens": [token for token, _ in listed],
        "tokenizer.ggml.token_type": [kind for _, kind in listed],
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in merges],
        "tokenizer.ggml.add_bos_token": bool(tokenizer.config.get("add_bos_token")),
    }
    for key, name in _NAMES.items():
        if (token := tokenizer.special_text(key)) in ids:
            pairs[f"tokenizer.ggml.{name}_token_id"] = ids[token]
    return pairs | ({"tokenizer.chat_template": template} if template else {})


def _rule(model: Path, stored: dict[str, Any]) -> str:
    """The name of the pre-tokenizer that cuts a probing text as the model's own does."""
    stored["model"] = {"type": "BPE", "vocab": {}, "merges": []}
    backend = tokenizers.Tokenizer.from_str(json.dumps(stored | {"added_tokens": []}))
    if backend.pre_tokenizer is None:
        raise ConfigurationError(f"{model}: a tokenizer that does not cut text up is not written")
    expected = [span for _, span in backend.pre_tokenizer.pre_tokenize_str(_PROBE)]
    for name in PATTERNS:
        rule = byte_level(name)
        if rule and [span for _, span in rule.pre_tokenize_str(_PROBE)] == expected:
            return name
    raise ConfigurationError(f"{model}: GGUF has no name for how its tokenizer cuts text up")
