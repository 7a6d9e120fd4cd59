"""Render conversations as tokens with a loss mask, which is true for the assistant's tokens.

A turn's trained tokens are those that the model generates when it is served: from the end of the
generation prompt through the token that ends the turn, without what the template adds after it.
Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from hagane.data.records import Answer, Completion, RecordedConversation, RecordError
from hagane.system.errors import InvalidRequestError
from hagane.text.chat_template import ChatTemplate, Rendered, TemplateInput
from hagane.text.tokenizer import Encoded, Tokenizer
from hagane.weights.sources.config import load_config

_Span = tuple[int, int]
# A text, and the characters [start, end) of it that are trained.
_Draft = tuple[str, list[_Span]]


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

    def sequences(self, answers: Sequence[Answer]) -> list[list[MaskedSequence] | RecordError]:
        """For each answer one sequence, or one for each turn if the template requires it; or why
        it cannot be used. Many together take far less time than one by one.
        """
        conversations = [answer for answer in answers if not isinstance(answer, Completion)]
        found = iter(self._conversations(conversations))
        return [
            self._completion(answer) if isinstance(answer, Completion) else next(found)
            for answer in answers
        ]

    def _completion(self, answer: Completion) -> list[MaskedSequence] | RecordError:
        """Tokenize prompt and completion separately, as in serving."""
        try:
            head = self.tokenizer.encode(answer.prompt)
            tail = self.tokenizer.encode(answer.completion, add_special_tokens=False)
            tail += [] if self._end is None else [self._end]
            return [_sequence([*head, *tail], [False] * len(head) + [True] * len(tail))]
        except (InvalidRequestError, RecordError) as error:
            return RecordError(str(error))

    def _conversations(
        self, conversations: Sequence[RecordedConversation]
    ) -> list[list[MaskedSequence] | RecordError]:
        drafts = self._drafts(conversations)
        texts = [text for draft in drafts if isinstance(draft, list) for text, _ in draft]
        encoded = iter(self.tokenizer.encode_spans(texts))
        return [
            draft
            if isinstance(draft, RecordError)
            else self._masked(draft, list(islice(encoded, len(draft))))
            for draft in drafts
        ]

    def _drafts(
        self, conversations: Sequence[RecordedConversation]
    ) -> list[list[_Draft] | RecordError]:
        """Texts to train on, each with the characters that are trained."""
        if self.template is None:
            reason = "has messages, but the model has no chat template: use text instead"
            return [RecordError(reason) for _ in conversations]
        rendered = self.template.render_turns([_request(one) for one in conversations])
        return [_draft(*both) for both in zip(conversations, rendered, strict=True)]

    def _masked(
        self, draft: list[_Draft], encoded: list[Encoded | InvalidRequestError]
    ) -> list[MaskedSequence] | RecordError:
        try:
            both = zip(draft, encoded, strict=True)
            return [self._tokens(text, spans, tokens) for (text, spans), tokens in both]
        except RecordError as error:
            return error

    def _tokens(
        self, text: str, spans: list[_Span], encoded: Encoded | InvalidRequestError
    ) -> MaskedSequence:
        """Train on the tokens that begin inside a span, up to the last one that ends a turn."""
        if isinstance(encoded, InvalidRequestError):
            raise RecordError(str(encoded))
        ids, offsets = encoded
        starts = np.fromiter((start for start, _ in offsets), dtype=np.int64, count=len(offsets))
        trained = np.zeros(len(ids), dtype=bool)
        for start, end in spans:
            inside = np.flatnonzero((starts >= start) & (starts < end))
            ends = [i for i in inside if ids[i] in self._ends]
            if ends and not text[offsets[ends[-1]][1] : end].strip():
                inside = inside[inside <= ends[-1]]
            trained[inside] = True
        return _sequence(ids, trained)


def _request(answer: RecordedConversation) -> TemplateInput:
    turns = tuple(index for index, trained in enumerate(answer.weights) if trained)
    extra = {} if answer.tools is None else {"tools": list(answer.tools)}
    return TemplateInput(answer.messages, turns, extra)


def _draft(
    answer: RecordedConversation, rendered: Rendered | InvalidRequestError
) -> list[_Draft] | RecordError:
    if isinstance(rendered, InvalidRequestError):
        return RecordError(str(rendered))
    if rendered.spans:
        return _marked(answer, rendered)
    spans, apart = [], []
    for index, turn in zip(_request(answer).turns, rendered.turns, strict=True):
        if turn.start < turn.before:
            return RecordError(
                f"messages[{index}]: the chat template rewrites the messages before it, so that "
                "the assistant's own text cannot be found"
            )
        if turn.text is None:
            spans.append((turn.start, turn.end))
        else:
            # The template changes this turn once others follow: train on it as it is generated.
            apart.append((turn.text, [(turn.start, turn.end)]))
    return [*([(rendered.text, spans)] if spans else []), *apart]


def _marked(answer: RecordedConversation, rendered: Rendered) -> list[_Draft] | RecordError:
    """Trained on as the template itself marks it."""
    both = zip(answer.messages, answer.weights, strict=True)
    kept = [weight for message, weight in both if message["role"] == "assistant"]
    marked = rendered.spans
    if len(kept) != len(marked):
        return RecordError(
            f"has {len(kept)} assistant messages, of which the chat template marks "
            f"{len(marked)} as generated"
        )
    return [(rendered.text, [s for s, keep in zip(marked, kept, strict=True) if keep])]


def _sequence(ids: list[int], trained: object) -> MaskedSequence:
    """Cut after the last trained token: the rest has no effect on the loss."""
    mask = np.array(trained, dtype=bool)
    # Nothing precedes the first token, so nothing can predict it.
    mask[:1] = False
    if not mask.any():
        raise RecordError("has nothing to learn: the assistant's text is empty")
    end = int(np.flatnonzero(mask)[-1]) + 1
    return MaskedSequence(np.array(ids[:end], dtype=np.int32), mask[:end])
