"""Prompts for filling in the middle: a text before, a text after, and the model writes between.

Bavarian et al., 2022, arXiv:2207.14255: prefix, suffix, middle, each after a token of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from hagane.text.tokenizer import Tokenizer

# The tokens before prefix, suffix and middle: Qwen 2.5, StarCoder and Granite, CodeGemma and
# StableCode, DeepSeek, Codestral's older form and CodeLlama.
_FORMS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)


@dataclass(frozen=True)
class FillInTheMiddle:
    """The ids of the tokens that stand before the prefix, the suffix and the middle."""

    prefix: int
    suffix: int
    middle: int

    @classmethod
    def find(cls, tokenizer: Tokenizer) -> FillInTheMiddle | None:
        """Those of a model; None for one that was not trained for it."""
        for form in _FORMS:
            ids = [tokenizer.added_id(token) for token in form]
            if None not in ids:
                return cls(*(i for i in ids if i is not None))
        return None

    def prompt(self, before: list[int], after: list[int]) -> list[int]:
        """The token ids after which the model writes what stands between."""
        return [self.prefix, *before, self.suffix, *after, self.middle]
