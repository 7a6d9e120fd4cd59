"""One connection's large body at a time: what many clients send must not fill a turn of the loop.

A connection is paused after a piece of its body and read again when the application reads on.
If all that ask were read in the same turn, 50 clients with large bodies would make every turn copy
megabytes, and each read gives up the interpreter's lock to whatever thread parses a body.
"""

from __future__ import annotations

import asyncio
from collections import deque

from uvicorn.protocols.http.flow_control import FlowControl


class Pacer:
    """Resumes one connection in each turn of the event loop, in the order of asking."""

    def __init__(self) -> None:
        self._asking: deque[PacedFlowControl] = deque()

    def resume(self, flow: PacedFlowControl) -> None:
        """Have `flow` read from its connection again, soon."""
        self._asking.append(flow)
        if len(self._asking) == 1:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._asking.popleft().resume_now()
        if self._asking:
            asyncio.get_running_loop().call_soon(self._next)


class PacedFlowControl(FlowControl):
    """uvicorn's flow control, whose connection is resumed by a pacer."""

    def __init__(self, transport: asyncio.Transport, pacer: Pacer) -> None:
        super().__init__(transport)
        self._pacer = pacer
        self._asked = False

    def pause_reading(self) -> None:
        super().pause_reading()
        self._asked = False

    def resume_reading(self) -> None:
        if self.read_paused and not self._asked:
            self._asked = True
            self._pacer.resume(self)

    def resume_now(self) -> None:
        """The connection's turn has come; it may have been paused again meanwhile."""
        if self._asked:
            self._asked = False
            super().resume_reading()
