"""The limits of a confined program."""

from __future__ import annotations

import pytest
from hagane.system.sandbox import Sandbox, SandboxError, SandboxLimitError

PROGRAM = "hagane.graders.program"


@pytest.fixture(scope="module")
def sandbox():
    confined = Sandbox(processes=1, seconds=1.0, memory=256 << 20, confined=PROGRAM)
    yield confined
    confined.close()


def grade(sandbox: Sandbox, source: str, sample: dict | None = None) -> float:
    return sandbox.call(f"{PROGRAM}:run_grade", source, sample or {}, {"answer": 4})


def test_programs_compute(sandbox):
    source = (
        "import math, re\n"
        "def grade(sample, item):\n"
        "    return math.sqrt(item['answer']) + len(re.findall('a', sample['output_text']))\n"
    )
    assert grade(sandbox, source, {"output_text": "banana"}) == 5.0


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.socket()",
        "import socket; socket.create_connection(('127.0.0.1', 80))",
        "open('/etc/passwd').read()",
        "open('/tmp/left-behind', 'w')",
        "import os; os.listdir('/')",
        "import os; os.fork()",
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.unlink('/tmp/nothing')",
        "import subprocess; subprocess.run(['true'])",
        "import threading; threading.Thread(target=print).start()",
    ],
)
def test_everything_else_is_refused(sandbox, attempt):
    source = f"def grade(sample, item):\n    {attempt}\n    return 1\n"
    with pytest.raises(SandboxError):
        grade(sandbox, source)


def test_time_and_memory_are_bounded_and_the_next_call_works(sandbox):
    for body in ("while True: pass", "return len('x' * (1 << 30))"):
        with pytest.raises(SandboxLimitError):
            grade(sandbox, f"def grade(sample, item):\n    {body}\n")
    assert grade(sandbox, "def grade(sample, item): return 1") == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "grade"),
        ("def grade(sample, item) return 1", "expected ':'"),
        ("def grade(sample, item): return 'high'", "high"),
        ("def grade(sample, item): return float('nan')", "nan"),
    ],
)
def test_faults_of_a_program_are_told(sandbox, source, message):
    with pytest.raises(SandboxError, match=message):
        grade(sandbox, source)
