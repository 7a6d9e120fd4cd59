"""Nobody waits for the log."""

from __future__ import annotations

import os
import subprocess
import sys
import time

PROGRAM = """
import logging, sys, time
from hagane.system.logging import configure_logging, dropped_lines
configure_logging("INFO", "json")
started = time.monotonic()
for i in range(30_000):
    logging.info("line %d", i)
print(time.monotonic() - started, dropped_lines(), flush=True)
"""


def test_a_pipe_that_nobody_reads_stops_nobody():
    reading, writing = os.pipe()
    try:
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], stderr=writing, stdout=subprocess.PIPE, timeout=60
        )
    finally:
        os.close(writing)
        os.close(reading)
    seconds, dropped = done.stdout.split()
    assert float(seconds) < 20
    assert int(dropped) > 10_000
    assert time.monotonic() - started < 60


def test_every_line_is_written_before_the_program_ends():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("30_000", "500")], capture_output=True, timeout=60
    )
    assert done.stderr.count(b'"message": "line ') == 500


def test_lines_have_the_request_s_id_and_their_exception():
    program = (
        PROGRAM.replace("for i in range(30_000):", "for i in range(0):")
        + """
from hagane.system.logging import request_id
request_id.set("req_7")
try:
    1 / 0
except ZeroDivisionError:
    logging.exception("what %s", {"a": 1})
"""
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert b'"request_id": "req_7"' in done.stderr
    assert b"ZeroDivisionError" in done.stderr
