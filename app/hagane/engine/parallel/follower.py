"""A rank that follows: it runs the forward passes that the first rank orders.

Started by `hagane.engine.parallel.leader` as `python -m hagane.engine.parallel FD`, where FD is its
end of a socket pair. It ends when the first rank does.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import select
import signal
import socket
import sys
from concurrent.futures import Future
from pathlib import Path

import torch

from hagane.engine.background_thread import BackgroundThread
from hagane.engine.parallel.meeting import meet, own_config
from hagane.engine.parallel.orders import Join, Order, Orders, PackAdapter, PlaceAdapter, RunStep
from hagane.engine.step.runner import ModelRunner
from hagane.lora.banks import PackedAdapter
from hagane.system.errors import HaganeError
from hagane.system.logging import configure_logging

logger = logging.getLogger("hagane.engine.loop")

_PR_SET_PDEATHSIG = 1


class Follower:
    """Runs the orders of one rank; `runner` is that of its part of the model."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._thread = BackgroundThread("adapters", lambda: None)
        self._packed: dict[str, Future[PackedAdapter]] = {}

    @torch.inference_mode()
    def follow(self, order: Order) -> None:
        """Any exception means that this rank has fallen out of step."""
        match order:
            case RunStep():
                self._runner.execute(order.batch(), order.copies)
            case PackAdapter():
                adapter = order.adapter()
                self._packed[order.digest] = self._thread.submit(self._runner.banks.pack, adapter)
            case PlaceAdapter(digest=None):
                self._runner.banks.clear(order.slot)
            case PlaceAdapter():
                packed = self._packed.pop(str(order.digest)).result()
                self._runner.banks.place(order.slot, packed)
            case _:
                raise ValueError(f"{order!r} after the start")


def main(descriptor: int) -> None:
    """Follow the orders on the socket `descriptor`, the first of which is to join."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        # It may be waiting for another rank while the first one dies.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    connection = socket.socket(fileno=descriptor)
    orders = Orders(connection)
    try:
        join = orders.receive()
        if not isinstance(join, Join):
            raise TypeError(f"the first order must be to join, not {type(join)}")
        configure_logging(join.config.log_level, join.config.log_format)
        group = meet(join.config, join.rank, join.place, Path(join.meeting))
        follower = Follower(runner := ModelRunner(own_config(join.config), group=group))
        gc.freeze()
        gc.enable()
        runner.pin_main_thread()
        while True:
            while not select.select([connection], [], [], 0)[0] and runner.prefault():
                pass
            follower.follow(orders.receive())
    except (EOFError, ConnectionResetError):
        logger.debug("the first rank has ended")
    except HaganeError as error:
        # The first rank meets it, too, and reports it before all end.
        logger.debug("this rank cannot start: %s", error)
        connection.recv(1)
