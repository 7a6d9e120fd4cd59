"""Starts engine processes. It imports nearly nothing: a server launches its engine before all else.

The engine's own imports (torch among them) take longer than the API's, which run meanwhile.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Launched:
    """An engine process that waits for its config on the other end of `connection`.

    It ends by itself when `connection` is closed.
    """

    process: subprocess.Popen[bytes]
    connection: socket.socket


def launch() -> Launched:
    ours, theirs = socket.socketpair()
    with theirs:
        descriptor = theirs.fileno()
        command = [sys.executable, "-m", "hagane.engine.loop", str(descriptor)]
        process = subprocess.Popen(command, pass_fds=[descriptor])  # noqa: S603 - of our own
    return Launched(process, ours)
