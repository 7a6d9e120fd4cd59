"""Conversations as tokens, and which of them the model is to learn: what the assistant says.

A turn's tokens are those that the model would have to produce when served: after the generation
prompt, through the token that ends the turn. What the template puts after that token, the model
never says. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hagane.data.records import Answer, Completion, Conversation, RecordError
from hagane.system.errors import InvalidRequestError
from hagane.text.chat_template import ChatTemplate
from hagane.text.tokenizer import Tokenizer
from hagane.weights.sources.config import load_config


@dataclass(frozen=True, eq=False)
class Sequence:
    """int32 token ids [n], and bool [n]: true where the token is to be learnt."""

    tokens: np.ndarray
    learnt: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, length: int) -> Sequence:
        """The first `length` tokens."""
        return Sequence(self.tokens[:length], self.learnt[:length])


class Renderer:
    """One model's tokenizer and template, as serving uses them."""

    def __init__(self, directory: Path) -> None:
        config = load_config(directory)
        self.tokenizer = Tokenizer.load(directory)
        self.template = ChatTemplate.load(directory, self.tokenizer)
        self._ends = self.tokenizer.special_ids | set(config.eos_token_ids)
        own = self.tokenizer.eos_token_id
        self._end = own if own is not None else next(iter(config.eos_token_ids), None)

    def sequences(self, answer: Answer) -> list[Sequence]:
        """The answer as one sequence, or one for every turn where the template demands it.

        Raises RecordError where nothing is left to learn, or the template refuses.
        """
        if isinstance(answer, Completion):
            return [self._completion(answer)]
        try:
            return self._conversation(answer)
        except InvalidRequestError as error:
            raise RecordError(str(error)) from None

    def _completion(self, answer: Completion) -> Sequence:
        """The two texts side by side, as a served prompt is followed by what is generated."""
        head = self.tokenizer.encode(answer.prompt)
        said = self.tokenizer.encode(answer.completion, add_special_tokens=False)
        said += [] if self._end is None else [self._end]
        return _sequence([*head, *said], [False] * len(head) + [True] * len(said))

    def _conversation(self, answer: Conversation) -> list[Sequence]:
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
        for index, learnt in enumerate(answer.weights):
            if not learnt:
                continue
            start, text = self._turn(answer, index)
            if whole.startswith(text):
                spans.append((start, len(text)))
            else:
                # The template renders this turn otherwise once others follow: learnt as it is said.
                apart.append(self._tokens(text, [(start, len(text))]))
        return [*([self._tokens(whole, spans)] if spans else []), *apart]

    def _turn(self, answer: Conversation, index: int) -> tuple[int, str]:
        """The conversation up to message `index`, and the character where what it says begins."""
        text, _ = self._render(answer, index + 1)
        prompt, _ = self._render(answer, index, add_generation_prompt=True)
        # Some generation prompts say more than the template repeats: an opening <think>, say.
        start = _agreeing(prompt, text)
        before, _ = self._render(answer, index)
        if start < len(before):
            raise RecordError(
                f"messages[{index}]: the chat template rewrites the messages before it, so that "
                "what the assistant says cannot be told apart"
            )
        return start, text

    def _render(
        self, answer: Conversation, count: int, *, add_generation_prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        if self.template is None:
            raise RecordError("has messages, but the model has no chat template: use text instead")
        extra = {} if answer.tools is None else {"tools": list(answer.tools)}
        messages = list(answer.messages[:count])
        return self.template.render_spans(
            messages, add_generation_prompt=add_generation_prompt, **extra
        )

    def _tokens(self, text: str, spans: list[tuple[int, int]]) -> Sequence:
        """Tokens that begin inside a span are learnt, up to the last one that ends a turn."""
        ids, offsets = self.tokenizer.encode_spans(text)
        starts = np.fromiter((start for start, _ in offsets), dtype=np.int64, count=len(offsets))
        learnt = np.zeros(len(ids), dtype=bool)
        for start, end in spans:
            inside = np.flatnonzero((starts >= start) & (starts < end))
            ends = [i for i in inside if ids[i] in self._ends]
            if ends and not text[offsets[ends[-1]][1] : end].strip():
                inside = inside[inside <= ends[-1]]
            learnt[inside] = True
        return _sequence(ids, learnt)


def _agreeing(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _sequence(ids: list[int], learnt: object) -> Sequence:
    """Without what follows the last token to be learnt: nothing would come of computing it."""
    mask = np.array(learnt, dtype=bool)
    # Nothing precedes the first token, so nothing can predict it.
    mask[:1] = False
    if not mask.any():
        raise RecordError("has nothing to learn: what the assistant says is empty")
    end = int(np.flatnonzero(mask)[-1]) + 1
    return Sequence(np.array(ids[:end], dtype=np.int32), mask[:end])
