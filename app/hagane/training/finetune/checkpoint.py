"""The state of a run on disk, whole or not there: what resuming bit for bit needs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from hagane.system.errors import TrainingError
from hagane.system.files import commit, write_text
from hagane.training.finetune.examples import Data, Example
from hagane.training.finetune.model import Trainee
from hagane.training.finetune.spec import FineTuneSpec

_STATE, _SPEC = "checkpoint.pt", "spec.json"


@dataclass
class Progress:
    """How far a run is. The position in the data and all randomness follow from seed and step.

    `valid_loss` is the least so far, that of the checkpoint after `best_step` steps.
    """

    step: int = 0
    trained_tokens: int = 0
    base_valid_loss: float | None = None
    valid_loss: float = math.inf
    best_step: int = 0

    def advance(self, examples: list[Example]) -> None:
        """One more step, which learnt from `examples`."""
        self.step += 1
        self.trained_tokens += sum(map(len, examples))

    def score(self, valid_loss: float) -> None:
        """The validation loss of the checkpoint at this step."""
        if valid_loss < self.valid_loss:
            self.valid_loss, self.best_step = valid_loss, self.step


class StateFile:
    """What the run can go on from in `directory`: of `spec`, on the examples of `data`."""

    def __init__(self, directory: Path, spec: FineTuneSpec, data: Data) -> None:
        """Raises TrainingError if the directory holds a run that was asked for differently."""
        self._path = directory / _STATE
        directory.mkdir(parents=True, exist_ok=True)
        asked = json.loads(spec.model_dump_json()) | {"examples": data.digest}
        stored = directory / _SPEC
        if not stored.is_file():
            write_text(stored, json.dumps(asked, indent=2) + "\n")
            return
        before = json.loads(stored.read_text(encoding="utf-8"))
        if changed := [key for key in asked if asked[key] != before.get(key)]:
            raise TrainingError(
                f"{directory.parent} holds a run with other {changed[0]} "
                f"({before.get(changed[0])!r}): name a new directory, or delete this one",
                code="invalid_model",
            )

    def save(self, trainee: Trainee, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """A crash at any moment leaves this checkpoint or the one before."""
        state = {
            "parameters": [parameter.detach() for parameter in trainee.parameters()],
            "optimizer": optimizer.state_dict(),
            "progress": asdict(progress),
        }
        partial = self._path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
        commit(partial, self._path)

    def load(self, trainee: Trainee, optimizer: torch.optim.Optimizer) -> Progress:
        """Put the last checkpoint in place; without one, the run is at its beginning."""
        if not self._path.is_file():
            return Progress()
        state = torch.load(self._path, weights_only=True, map_location=trainee.device)
        with torch.no_grad():
            for mine, saved in zip(trainee.parameters(), state["parameters"], strict=True):
                mine.copy_(saved)
        optimizer.load_state_dict(state["optimizer"])
        return Progress(**state["progress"])
