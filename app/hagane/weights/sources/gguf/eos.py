"""Which tokens end a text, by a GGUF file's metadata."""

from __future__ import annotations

from hagane.weights.sources.gguf.file import GGUFFile

# Files name one end of text; chat models end a turn with another token, known by its spelling.
_ENDS = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eom_id|>",
        "<EOT>",
        "<|return|>",
        "<|call|>",
        "<｜end▁of▁sentence｜>",
    }
)
_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
# Kinds of tokens.
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4


def end_token_ids(file: GGUFFile) -> list[int]:
    """Ids after which generation stops. Raises ModelError for one outside the vocabulary."""
    size = file.length("tokenizer.ggml.tokens")
    ids = set()
    for key in _KEYS:
        value = file.get(f"tokenizer.ggml.{key}")
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < size:
            raise file.error(f"has the tokenizer.ggml.{key} {value!r}, outside its vocabulary")
        ids.add(value)
    kinds = file.get("tokenizer.ggml.token_type")
    if kinds is None or file.length("tokenizer.ggml.token_type") != size:
        return sorted(ids)
    tokens = file.get("tokenizer.ggml.tokens")
    special = [i for i, kind in enumerate(kinds.tolist()) if kind == CONTROL]
    return sorted(ids | {i for i in special if tokens[i] in _ENDS})
