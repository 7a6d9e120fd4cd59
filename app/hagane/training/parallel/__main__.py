"""A rank that the first one starts: `python -m hagane.training.parallel`, a `Seat` on its input.

It ends when its input closes. An error that ends it alone is its output, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from hagane.system.errors import HaganeError, TrainingInterrupted
from hagane.training.finetune.faults import explained
from hagane.training.finetune.loop import finetune_rank
from hagane.training.finetune.spec import FineTuneSpec
from hagane.training.parallel.group import Group
from hagane.training.parallel.ranks import Seat, Work, is_lost
from hagane.training.pretrain.config import PretrainConfig
from hagane.training.pretrain.loop import pretrain_rank
from hagane.training.report.listener import CheckpointReport, PretrainReport, StepReport


class Silent:
    """A listener that leaves everything to the first rank's."""

    def progress(self, report: StepReport | PretrainReport) -> None:
        pass

    def checkpoint(self, report: CheckpointReport) -> None:
        pass

    def interrupted(self) -> bool:
        return False


def run(work: Work, group: Group) -> None:
    """Run this rank's part of the work."""
    if work.kind == "pretrain":
        pretrain_rank(PretrainConfig.model_validate_json(work.spec), Silent(), group)
        return
    spec = FineTuneSpec.model_validate_json(work.spec)
    finetune_rank(spec, Path(work.directory), Silent(), group)


def _end_with_the_first_rank() -> None:
    while os.read(0, 1):
        continue
    os._exit(1)


def main() -> int:
    """The exit status."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Whatever prints shall not be taken for the report.
    report = os.dup(1)
    os.dup2(2, 1)
    seat = Seat.read(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_first_rank, daemon=True).start()
    try:
        with explained():
            run(seat.work, seat.join())
    except TrainingInterrupted:
        return 0
    except HaganeError as error:
        # If the first rank meets it, too, it does not read this.
        os.write(report, json.dumps({"code": error.code, "message": str(error)}).encode())
        return 1
    except RuntimeError as error:
        if not is_lost(error):
            raise
        # The first rank says which.
    return 0


if __name__ == "__main__":
    # Not by returning: the group's threads may be waiting for ranks that are gone.
    os._exit(main())
