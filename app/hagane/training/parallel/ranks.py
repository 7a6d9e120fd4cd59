"""The processes of a data-parallel run: those of `torchrun`, or children of the first rank.

Children end with the first rank. It raises `RankLostError` when one of them is gone: the run then
goes on from its last checkpoint, with all ranks anew.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from hagane.kernels import collective
from hagane.system.errors import ConfigurationError, HaganeError, RankLostError, TrainingError
from hagane.training.parallel.group import ALONE, Group, own_device

logger = logging.getLogger(__name__)

# Others wait while the first rank reads a corpus or asks a teacher. A rank that is gone is noticed
# at once.
_PATIENCE_SECONDS = 7200.0
_END_SECONDS = 5.0
# Between the end of a rank and that of the first one, if that hears nothing of it.
_NOTICE_SECONDS = 30.0


@dataclass(frozen=True)
class Work:
    """What all ranks run: `spec` is a FineTuneSpec or a PretrainConfig as JSON."""

    kind: Literal["finetune", "pretrain"]
    spec: str
    directory: str


@dataclass(frozen=True)
class Seat:
    """The place of a rank that the first one started.

    `memory` is the part of a GPU's memory that its tensors may take.
    """

    rank: int
    size: int
    meeting: str
    device: str
    memory: float
    work: Work

    @classmethod
    def read(cls, line: bytes) -> Seat:
        values = json.loads(line)
        return cls(**{**values, "work": Work(**values["work"])})

    def join(self) -> Group:
        """Wait for the others; returns when all are there."""
        device = own_device(self.device, self.rank)
        if device.type == "cuda":
            torch.cuda.set_device(device)
            torch.cuda.set_per_process_memory_fraction(self.memory, device)
        ranks = collective.Group(
            self.rank, self.size, Path(self.meeting), device, _PATIENCE_SECONDS
        )
        group = Group(self.rank, self.size, self.rank, self.size, ranks)
        # After this nobody reads the file any more.
        group.wait()
        return group


def is_lost(error: RuntimeError) -> bool:
    """Whether it says that another rank is gone, in the words of gloo."""
    return "Connection" in str(error)


def leads() -> bool:
    """Whether this process is the first of those that `torchrun` started, or alone."""
    return _started() == 1 or int(os.environ["RANK"]) == 0


def _started() -> int:
    """The processes that `torchrun` started. Raises ConfigurationError without their numbers."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and "RANK" not in os.environ:
        raise ConfigurationError(
            f"WORLD_SIZE is {size} and there is no RANK: start with torchrun, or unset it"
        )
    return size


@contextmanager
def together(ranks: int, device: str, work: Work) -> Iterator[Group]:
    """This process' rank in the group of a run; others that run `work` are started, if need be.

    Under `torchrun` the ranks are its processes, on one machine or on several, which all call this.
    Raises ConfigurationError for ranks or devices that there are not, and RankLostError when a rank
    is gone.
    """
    if (size := _started()) > 1:
        with _of_torchrun(ranks, size, device) as group:
            yield group
    elif ranks == 1:
        yield ALONE
    else:
        with _with_children(ranks, device, work) as group:
            yield group


@contextmanager
def _of_torchrun(ranks: int, size: int, name: str) -> Iterator[Group]:
    if ranks not in (1, size):
        raise ConfigurationError(
            f"data_parallel {ranks} is not the {size} processes that torchrun started: leave it out"
        )
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    device = own_device(name, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    made = collective.Group(rank, size, None, device, _PATIENCE_SECONDS)
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        yield Group(rank, size, local_rank, local_size, made)
    except RuntimeError as error:
        if is_lost(error):
            raise RankLostError(f"another rank is gone: {error}") from error
        raise
    finally:
        made.leave()


@contextmanager
def _with_children(ranks: int, name: str, work: Work) -> Iterator[Group]:
    for rank in range(ranks):
        _require_device(name, rank, ranks)
    device = own_device(name, 0)
    memory = 1.0
    if device.type == "cuda":
        memory = torch.cuda.get_per_process_memory_fraction(device)
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="hagane-ranks-") as directory:
        meeting = f"{directory}/meeting"
        seats = [Seat(rank, ranks, meeting, name, memory, work) for rank in range(ranks)]
        share = max(1, threads // ranks)
        torch.set_num_threads(share)
        children = _Children(share)
        group = None
        try:
            for seat in seats[1:]:
                children.start(seat)
            group = seats[0].join()
            # From here on gloo raises when a rank is gone; NCCL waits.
            children.watched = device.type == "cuda"
            yield group
        except HaganeError:
            raise
        except Exception as error:
            if (lost := children.loss()) is not None:
                raise lost from error
            raise
        finally:
            children.end()
            torch.set_num_threads(threads)
            if group is not None and group.collective is not None:
                group.collective.leave()


def _require_device(name: str, rank: int, ranks: int) -> None:
    try:
        own_device(name, rank)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"data_parallel {ranks} needs a device for each rank: {error}"
        ) from None


class _Children:
    """The other ranks' processes. While they are `watched`, none of them ends alone."""

    def __init__(self, threads: int) -> None:
        self.watched, self._over = True, threading.Event()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}

    def start(self, seat: Seat) -> None:
        """Start a rank of so many `threads`."""
        # Its input is held open as long as this process lives; it ends when that closes.
        process = subprocess.Popen(
            [sys.executable, "-m", "hagane.training.parallel"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment,
        )  # fmt: skip
        self._processes[seat.rank] = process
        if process.stdin is not None:
            process.stdin.write(json.dumps(asdict(seat)).encode() + b"\n")
            process.stdin.flush()
        threading.Thread(target=self._watch, args=(process,), daemon=True).start()

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """End this process soon after that one, where it would wait for it."""
        if process.wait() and not self._over.wait(_NOTICE_SECONDS) and self.watched:
            logger.error("%s", self.loss())
            logging.shutdown()
            os._exit(1)

    def loss(self) -> HaganeError | None:
        """Why a rank has ended, if one ends within seconds."""
        deadline = time.monotonic() + _END_SECONDS
        while time.monotonic() < deadline:
            for rank, process in self._processes.items():
                if process.poll():
                    return _reason(rank, process)
            time.sleep(0.05)
        return None

    def end(self) -> None:
        """Wait for those that are done, and end the others."""
        self._over.set()
        for process in self._processes.values():
            if process.stdin is not None:
                process.stdin.close()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _reason(rank: int, process: subprocess.Popen[bytes]) -> HaganeError:
    """The error that the rank reported before its end, or that it is gone."""
    reported = process.stdout.read() if process.stdout is not None else b""
    if reported:
        values = json.loads(reported)
        return TrainingError(f"rank {rank}: {values['message']}", code=values["code"])
    code = process.returncode
    ending = f"signal {-code}" if code < 0 else f"exit status {code}"
    return RankLostError(
        f"rank {rank} ended with {ending}: started again, the run goes on from its last checkpoint"
    )
