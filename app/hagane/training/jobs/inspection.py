"""Read training files in a process of their own, so that long ones do not slow the streams.

`python -m hagane.training.jobs.inspection FRACTION` takes the specification of a run as JSON on its
standard input and answers with the FileReports of its files. Needs no torch where there is no GPU.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hagane.system.errors import HaganeError, TrainingError
from hagane.training.finetune.spec import FineTuneSpec
from hagane.training.jobs.allowance import allowed_memory, find_gpu
from hagane.training.jobs.priority import step_back
from hagane.training.reinforce.spec import ReinforceSpec, read_spec

if TYPE_CHECKING:
    from hagane.training.finetune.examples import FileReport


@dataclass(frozen=True)
class Inspection:
    """The reports (`FileReport`) of a run's files, and the resolved `plan` if they are valid.

    `validation` is None for a run without a validation file. `allowed_memory` is in bytes.
    """

    training: dict[str, Any]
    validation: dict[str, Any] | None
    plan: dict[str, Any] | None
    allowed_memory: int


class Spawn(Protocol):
    """Starts a program with pipes for the given streams.

    >>> process = await spawn(sys.executable, "-m", "hagane.training.jobs.worker", stdin=PIPE)
    """

    async def __call__(
        self,
        *command: str,
        stdin: int | None = None,
        stdout: int | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> asyncio.subprocess.Process:
        """`variables` go on top of the environment of this process. Raises OSError."""
        ...


async def spawn_process(
    *command: str,
    stdin: int | None = None,
    stdout: int | None = None,
    variables: Mapping[str, str] | None = None,
) -> asyncio.subprocess.Process:
    """A process of the operating system."""
    environment = {**os.environ, **(variables or {})}
    return await asyncio.create_subprocess_exec(
        *command, stdin=stdin, stdout=stdout, env=environment
    )


async def inspect_files(
    spec: FineTuneSpec, gpu_memory_fraction: float, spawn: Spawn = spawn_process
) -> Inspection:
    """Read the files of `spec` completely. Raises TrainingError if that fails.

    On a GPU the run may take `gpu_memory_fraction` of its memory.
    """
    process = await spawn(
        sys.executable,
        "-m",
        "hagane.training.jobs.inspection",
        str(gpu_memory_fraction),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        output, _ = await process.communicate(spec.model_dump_json().encode())
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise TrainingError(
            f"reading the files ended with {exit_reason(process.returncode)}; see the log",
            code="inspection_failed",
        )
    answer = json.loads(output)
    if "error" in answer:
        raise TrainingError(answer["error"], code="invalid_model")
    return Inspection(**answer)


def exit_reason(code: int) -> str:
    """A process' exit status in words."""
    if code >= 0:
        return f"exit status {code}"
    return f"signal {-code} ({signal.Signals(-code).name})"


def main() -> None:
    step_back()
    spec = read_spec(json.loads(sys.stdin.read()))
    try:
        answer = _answer(spec, float(sys.argv[1]))
    except HaganeError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


def _answer(spec: FineTuneSpec, gpu_memory_fraction: float) -> dict[str, Any]:
    # For the inspection process alone: the server that starts it needs no numpy.
    from hagane.training.finetune.examples import report as report_examples
    from hagane.training.reinforce.tasks import report_tasks

    def report(of: FineTuneSpec) -> FileReport:
        return report_tasks(of) if isinstance(of, ReinforceSpec) else report_examples(of)

    training = report(spec).to_dict()
    validation = None
    if spec.validation_file is not None:
        alone = spec.model_copy(update={"training_file": spec.validation_file})
        validation = report(alone).to_dict()
    return {
        "training": training,
        "validation": validation,
        "plan": training.pop("plan"),
        "allowed_memory": allowed_memory(find_gpu(spec.device), gpu_memory_fraction),
    }


if __name__ == "__main__":
    main()
