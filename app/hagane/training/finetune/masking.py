"""Render conversations as tokens with a loss mask, which is true for the assistant's tokens.

A turn's trained tokens are those that the model generates when it is served: from the end of the
generation prompt through the token that ends the turn, without what the template adds after it.
Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hagane.data.records import Answer, Completion, RecordedConversation, RecordError
from hagane.system.errors import InvalidRequestError
from hagane.text.chat_template import ChatTemplate
from hagane.text.tokenizer import Tokenizer
from hagane.weights.sources.config import load_config


@dataclass(frozen=True, eq=False)
class MaskedSequence:
    """int32 token ids [n], and a bool loss mask [n]: true for trained tokens."""

    tokens: np.ndarray
    loss_mask: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, length: int) -> MaskedSequence:
        """The first `length` tokens."""
        return MaskedSequence(self.tokens[:length], self.loss_mask[:length])


class Renderer:
    """One model's tokenizer and template, as serving uses them."""

    def __init__(self, directory: Path) -> None:
        config = load_config(directory)
        self.tokenizer = Tokenizer.load(directory)
        self.template = ChatTemplate.load(directory, self.tokenizer)
        self._ends = self.tokenizer.special_ids | set(config.eos_token_ids)
        own = self.tokenizer.eos_token_id
        self._end = own if own is not None else next(iter(config.eos_token_ids), None)

    def sequences(self, answer: Answer) -> list[MaskedSequence]:
        """The answer as one sequence, or one for each turn if the template requires it.

        Raises RecordError if no token is left to train on, or if the template refuses.
        """
        if isinstance(answer, Completion):
            return [self._completion(answer)]
        try:
            return self._conversation(answer)
        except InvalidRequestError as error:
            raise RecordError(str(error)) from None

    def _completion(self, answer: Completion) -> MaskedSequence:
        """Tokenize prompt and completion separately, as in serving."""
        head = self.tokenizer.encode(answer.prompt)
        tail = self.tokenizer.encode(answer.completion, add_special_tokens=False)
        tail += [] if self._end is None else [self._end]
        return _sequence([*head, *tail], [False] * len(head) + [True] * len(tail))

    def _conversation(self, answer: RecordedConversation) -> list[MaskedSequence]:
        whole, marked = self._render(answer, len(answer.messages))
        if marked:
            kept = [w for m, w in zip(answer.messages, answer.weights, strict=True)
                    if m["role"] == "assistant"]  # fmt: skip
            if len(kept) != len(marked):
                raise RecordError(
                    f"has {len(kept)} assistant messages, of which the chat template marks "
                    f"{len(marked)} as generated"
                )
            return [self._tokens(whole, [s for s, keep in zip(marked, kept, strict=True) if keep])]
        spans, apart = [], []
        for index, trained in enumerate(answer.weights):
            if not trained:
                continue
            start, text = self._turn(answer, index)
            if whole.startswith(text):
                spans.append((start, len(text)))
            else:
                # The template changes this turn once others follow: train on it as it is generated.
                apart.append(self._tokens(text, [(start, len(text))]))
        return [*([self._tokens(whole, spans)] if spans else []), *apart]

    def _turn(self, answer: RecordedConversation, index: int) -> tuple[int, str]:
        """The conversation through message `index`, and the offset where its content begins."""
        text, _ = self._render(answer, index + 1)
        prompt, _ = self._render(answer, index, add_generation_prompt=True)
        # Some generation prompts have more than the template repeats, such as an opening <think>.
        start = _agreeing(prompt, text)
        before, _ = self._render(answer, index)
        if start < len(before):
            raise RecordError(
                f"messages[{index}]: the chat template rewrites the messages before it, so that "
                "the assistant's own text cannot be found"
            )
        return start, text

    def _render(
        self, answer: RecordedConversation, count: int, *, add_generation_prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        if self.template is None:
            raise RecordError("has messages, but the model has no chat template: use text instead")
        extra = {} if answer.tools is None else {"tools": list(answer.tools)}
        messages = list(answer.messages[:count])
        return self.template.render_spans(
            messages, add_generation_prompt=add_generation_prompt, **extra
        )

    def _tokens(self, text: str, spans: list[tuple[int, int]]) -> MaskedSequence:
        """Train on the tokens that begin inside a span, up to the last one that ends a turn."""
        ids, offsets = self.tokenizer.encode_spans(text)
        starts = np.fromiter((start for start, _ in offsets), dtype=np.int64, count=len(offsets))
        trained = np.zeros(len(ids), dtype=bool)
        for start, end in spans:
            inside = np.flatnonzero((starts >= start) & (starts < end))
            ends = [i for i in inside if ids[i] in self._ends]
            if ends and not text[offsets[ends[-1]][1] : end].strip():
                inside = inside[inside <= ends[-1]]
            trained[inside] = True
        return _sequence(ids, trained)


def _agreeing(one: str, other: str) -> int:
    """Length of the common prefix of two texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _sequence(ids: list[int], trained: object) -> MaskedSequence:
    """Cut after the last trained token: the rest has no effect on the loss."""
    mask = np.array(trained, dtype=bool)
    # Nothing precedes the first token, so nothing can predict it.
    mask[:1] = False
    if not mask.any():
        raise RecordError("has nothing to learn: the assistant's text is empty")
    end = int(np.flatnonzero(mask)[-1]) + 1
    return MaskedSequence(np.array(ids[:end], dtype=np.int32), mask[:end])
