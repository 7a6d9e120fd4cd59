"""Which replica a request goes to: where the beginning of its prompt is cached, within the load.

Requests that begin alike prefer the replica that has computed that beginning; those of an adapter
one that has it loaded. What nobody has computed yet is placed by rendezvous hashing, so that
routers that know nothing of each other agree. No replica gets more than `slack` times its share of
the requests in flight (consistent hashing with bounded loads: Mirrokni et al., 2018,
arXiv:1608.01350): a prefix that is popular spreads over as many replicas as its load needs.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from hagane.cluster.version import ModelVersion
from hagane.pool.messages import GenerateRequest

# Tokens of one link of a chain of hashes, and the most links: 64 KiB of prompt text or so.
_CHUNK_TOKENS = 64
_MOST_CHUNKS = 128
# Beginnings that a router remembers: some 20 MB.
_REMEMBERED = 100_000


class RoutingHint(msgspec.Struct, frozen=True):
    """What routing needs to know of a request.

    `beginnings` are hashes of the first 64, 128, ... tokens of the prompt; `adapter` is its digest.
    Requests of another cache salt or adapter share no cache, and no hash.
    """

    beginnings: tuple[int, ...] = ()
    adapter: str = ""

    @classmethod
    def of(cls, request: GenerateRequest) -> RoutingHint:
        """The hint of a request."""
        adapter = request.adapter.digest if request.adapter else ""
        chain = hashlib.blake2b(f"{request.cache_salt}/{adapter}".encode(), digest_size=8)
        beginnings = []
        whole = min(len(request.prompt) // _CHUNK_TOKENS, _MOST_CHUNKS)
        for start in range(0, whole * _CHUNK_TOKENS, _CHUNK_TOKENS):
            chunk = request.prompt[start : start + _CHUNK_TOKENS]
            chain.update(b"".join(token.to_bytes(4, "little", signed=True) for token in chunk))
            beginnings.append(int.from_bytes(chain.digest()))
        return cls(tuple(beginnings), adapter)


@dataclass
class Placing:
    """A request that looks for a replica of `model`.

    `loads` are the requests in flight at each, `shut` those that take none for the moment. The
    router enters the names of those that have the model, `fitting`.
    """

    hint: RoutingHint
    model: ModelVersion
    loads: Mapping[str, int]
    shut: Collection[str]
    fitting: list[str] = field(default_factory=list)


class PrefixPolicy:
    """Ranks replicas for a request by what they have cached and by their load.

    >>> policy = PrefixPolicy()
    >>> best = policy.rank(hint, {"a": 3, "b": 0})[0]   # requests in flight of each
    >>> policy.note(hint, best)
    """

    def __init__(self, slack: float = 1.25, remembered: int = _REMEMBERED) -> None:
        self._slack, self._remembered = slack, remembered
        # The replica that computed a beginning last; the latest are at the end.
        self._places: OrderedDict[int | str, str] = OrderedDict()

    def rank(self, hint: RoutingHint, loads: Mapping[str, int]) -> Sequence[str]:
        """All replicas, the best first."""
        names = list(loads)
        random.shuffle(names)  # among equals
        names.sort(key=lambda name: loads[name])
        if not (hint.beginnings or hint.adapter):
            return names
        limit = math.ceil(self._slack * (1 + sum(loads.values())) / len(loads))
        preferred = [name for name in self._preferred(hint, names) if loads[name] < limit]
        return [*preferred, *(name for name in names if name not in preferred)]

    def note(self, hint: RoutingHint, replica: str) -> None:
        """Remember that `replica` has the request, and so its beginning and its adapter."""
        keys: list[int | str] = [*hint.beginnings, *([hint.adapter] if hint.adapter else [])]
        for key in keys:
            self._places[key] = replica
            self._places.move_to_end(key)
        while len(self._places) > self._remembered:
            self._places.popitem(last=False)

    def _preferred(self, hint: RoutingHint, names: Sequence[str]) -> list[str]:
        """Where the longest known beginning is and where the adapter is; else by hash."""
        found: list[str] = []
        longest = next((b for b in reversed(hint.beginnings) if b in self._places), None)
        for key in (longest, hint.adapter):
            place = self._places.get(key) if key is not None else None
            if place is not None and place in names and place not in found:
                found.append(place)
        if found:
            return found
        key = str(hint.beginnings[0] if hint.beginnings else hint.adapter)
        return [max(names, key=lambda name: _weight(key, name))]


def _weight(key: str, name: str) -> bytes:
    return hashlib.blake2b(f"{key}/{name}".encode(), digest_size=8).digest()
