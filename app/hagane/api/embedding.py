"""Embeddings and scores of texts through the engine, for the routes that need them."""

from __future__ import annotations

import asyncio
import math
import struct
from array import array
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import msgspec

from hagane.api.generation import Generation, prepare_generation
from hagane.api.limits import Account
from hagane.api.serving import ResolvedModel, Serving
from hagane.generation.request import Parameters, overflow
from hagane.models.encoder_config import EncoderConfig
from hagane.system.errors import HaganeError, InvalidRequestError

# Of one request, that the engine has at a time: others shall find room in its queue.
_MOST_AT_A_TIME = 32
# Of float32. The HTTP process starts without numpy.
Vector: TypeAlias = "array[float]"
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Embedder:
    """Options of one request for all its texts. `truncate` is a number of tokens, -1 for all."""

    serving: Serving
    account: Account
    resolved: ResolvedModel
    param: str = "input"
    truncate: int | None = None
    add_special_tokens: bool = True
    priority: int = 0
    timeout: float | None = None

    def __post_init__(self) -> None:
        """Raises InvalidRequestError for texts that would be cut to nothing."""
        if self.truncate == 0:
            raise InvalidRequestError(
                "'truncate_prompt_tokens' is 0, which leaves no token; send 1 or more, or -1 for "
                "as many as the model reads.",
                param="truncate_prompt_tokens",
            )

    def prepare(self, texts: Sequence[str | list[int]]) -> list[Generation]:
        """Tokenize; takes time. Raises InvalidRequestError naming the text."""
        return [self._prepare(text, place) for place, text in enumerate(texts)]

    def prepare_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Generation]:
        """Tokenize pairs of texts for a cross-encoder, whose embeddings are one number each.

        Takes time. Raises ContextLengthError for a pair that is too long.
        """
        longest, cut = self.resolved.context_length, self.truncate
        most = longest if cut is None or cut < 0 else min(cut, longest)
        tokenizer = self.resolved.text.tokenizer
        encoded = tokenizer.encode_pairs(pairs, most, cut=cut is not None)
        return [self._prepare_pair(ids, second, most) for ids, second in encoded]

    async def embed(self, prepared: Sequence[Generation]) -> list[Vector]:
        """Float32 vectors as the model makes them, in order. Raises what the engine does."""
        return await _each(prepared, self._embed, _MOST_AT_A_TIME)

    def _prepare(self, text: str | list[int], place: int) -> Generation:
        resolved, param = self.resolved, self.param
        model = resolved.text
        ids = text
        if isinstance(ids, str):
            if self.truncate is not None:
                special = self.add_special_tokens
                ids = model.tokenizer.encode(ids, add_special_tokens=special)
            else:
                ids = resolved.encode(
                    ids, param, wanted=None, add_special_tokens=self.add_special_tokens
                )
        most = resolved.context_length - (0 if model.encodes else 1)
        ids = self._fit(ids, most)
        if not ids:
            raise InvalidRequestError(
                f"'{param}' has an empty text (number {place}); send some text.", param=param
            )
        if len(ids) > most:
            raise overflow(len(ids), None, context_length=most, param=param)
        resolved.require_known(ids, param)
        return self._generation(ids)

    def _prepare_pair(self, ids: list[int], second: int, most: int) -> Generation:
        if len(ids) > most:
            raise overflow(len(ids), None, context_length=most, param=self.param, least=True)
        self.resolved.require_known(ids, self.param)
        generation = self._generation(ids)
        config = self.resolved.text.config
        if isinstance(config, EncoderConfig) and config.marks_second:
            request = msgspec.structs.replace(generation.request, second=second)
            generation = replace(generation, request=request)
        return generation

    def _generation(self, ids: list[int]) -> Generation:
        return prepare_generation(
            self.serving,
            self.account,
            self.resolved,
            ids,
            Parameters(temperature=0.0, priority=self.priority, timeout=self.timeout),
            max_tokens=1,
            pooling=self.resolved.text.embedding.pooling,
        )

    def _fit(self, ids: list[int], most: int) -> list[int]:
        """Cut a text as requested, keeping the token that ends it where that is a special one."""
        if self.truncate is None:
            return ids
        length = most if self.truncate < 0 else min(self.truncate, most)
        if len(ids) <= length:
            return ids
        last = ids[-1:]
        special = last[0] in self.resolved.text.tokenizer.special_ids
        return ids[: length - 1] + last if special else ids[:length]

    async def _embed(self, generation: Generation) -> Vector:
        found = None
        async with aclosing(generation.updates(self.serving, self.account)) as updates:
            async for update in updates:
                found = update.embedding or found
        if found is None:
            raise HaganeError("The engine made no embedding.")
        return array("f", struct.unpack(f"<{len(found) // 4}f", found))


def normalized(vector: Vector) -> Vector:
    """Scaled to length 1."""
    length = math.hypot(*vector)
    return array("f", (value / length for value in vector)) if length else vector


async def _each(items: Sequence[_T], work: Callable[[_T], Awaitable[_R]], most: int) -> list[_R]:
    """The results of `work`, in order, `most` items at a time; the first fault ends all."""
    room = asyncio.Semaphore(most)

    async def one(item: _T) -> _R:
        async with room:
            return await work(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
