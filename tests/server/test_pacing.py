"""Connections that wait to be read are resumed one in a turn of the event loop."""

from __future__ import annotations

import asyncio

from hagane.server.pacing import PacedFlowControl, Pacer


class Transport:
    """Records in which turn of the loop a connection was resumed."""

    def __init__(self, turns: list[int], log: dict[str, int], name: str) -> None:
        self.turns, self.log, self.name = turns, log, name

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None:
        self.log[self.name] = self.turns[0]


def connections(count: int) -> tuple[list[PacedFlowControl], list[int], dict[str, int]]:
    pacer, turns, log = Pacer(), [0], {}
    flows = [PacedFlowControl(Transport(turns, log, f"c{i}"), pacer) for i in range(count)]
    return flows, turns, log


async def run_turns(turns: list[int], count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
        turns[0] += 1


async def test_one_connection_a_turn_in_the_order_of_asking():
    flows, turns, log = connections(5)
    for flow in flows:
        flow.pause_reading()
    for flow in reversed(flows):
        flow.resume_reading()
        flow.resume_reading()
    assert not log, "nothing is read before the loop's next turn"
    await run_turns(turns, 8)
    assert sorted(log, key=log.__getitem__) == ["c4", "c3", "c2", "c1", "c0"]
    assert len(set(log.values())) == 5
    assert not any(flow.read_paused for flow in flows)


async def test_what_was_paused_again_stays_paused():
    flows, turns, log = connections(2)
    for flow in flows:
        flow.pause_reading()
        flow.resume_reading()
    flows[0].pause_reading()
    await run_turns(turns, 4)
    assert set(log) == {"c1"}
    flows[0].resume_reading()
    await run_turns(turns, 4)
    assert set(log) == {"c0", "c1"}


async def test_a_connection_that_is_read_already_takes_no_turn():
    flows, turns, log = connections(1)
    flows[0].resume_reading()
    await run_turns(turns, 2)
    assert not log
