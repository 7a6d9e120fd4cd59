"""Why engines died, and with which requests: counted for metrics, written to the log."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import msgspec

from hagane.pool.messages import GenerateRequest
from hagane.pool.process import Ending, EndReason

logger = logging.getLogger(__name__)

_MOST_SUSPECTS = 1024
_MOST_NAMED = 8


class CrashHistory:
    """Unexpected ends, by reason, and the requests in flight at them.

    A request is known by its content, not by its id: sent again, it is the same suspect.
    """

    def __init__(self) -> None:
        self.counts: Counter[EndReason] = Counter()
        self._suspects: OrderedDict[str, int] = OrderedDict()

    def record(self, ending: Ending, in_flight: Sequence[GenerateRequest]) -> None:
        """Count an end, and log it with the requests that were in flight."""
        self.counts[ending.reason] += 1
        seen = [(request, self._suspect(fingerprint(request))) for request in in_flight]
        # Those that were there before come first.
        seen.sort(key=lambda pair: -pair[1])
        named = ", ".join(_describe(request, times) for request, times in seen[:_MOST_NAMED])
        logger.error(
            "the engine process ended (%s) with %d requests in flight%s",
            ending,
            len(seen),
            f": {named}" if named else "",
        )

    def _suspect(self, print_: str) -> int:
        """Count a crash against a request; returns at how many it was in flight by now."""
        times = self._suspects.pop(print_, 0) + 1
        self._suspects[print_] = times
        if len(self._suspects) > _MOST_SUSPECTS:
            self._suspects.popitem(last=False)
        return times


def fingerprint(request: GenerateRequest) -> str:
    """Equal for requests of equal prompt, parameters and adapter."""
    content = msgspec.msgpack.encode((request.prompt, request.sampling, request.n, request.adapter))
    return blake2b(content, digest_size=6).hexdigest()


def _describe(request: GenerateRequest, times: int) -> str:
    text = f"{request.request_id} (content {fingerprint(request)}, {len(request.prompt)} tokens"
    return f"{text}, in flight at {times} crashes)" if times > 1 else f"{text})"
