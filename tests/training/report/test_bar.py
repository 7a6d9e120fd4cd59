"""Signals to a run on the terminal."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hagane.training.report.bar import Bar


@pytest.fixture(autouse=True)
def control_c() -> Iterator[None]:
    """As in a shell's foreground, however the tests were started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends(number, capsys):
    with Bar("training") as bar:
        assert not bar.interrupted()
        os.kill(os.getpid(), number)
        assert bar.interrupted()
        assert "stopping after this step" in capsys.readouterr().out
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_afterwards_signals_do_what_they_did_before():
    before = signal.getsignal(signal.SIGTERM)
    with Bar("training"):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_was_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Bar("training") as bar:
        os.kill(os.getpid(), signal.SIGINT)
        assert not bar.interrupted()
