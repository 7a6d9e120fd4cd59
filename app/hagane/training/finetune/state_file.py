"""The state of a run on disk, written atomically: all that an exact resumption needs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from hagane.system.errors import TrainingError
from hagane.system.files import commit, write_text
from hagane.training.finetune.model import FineTuneModel
from hagane.training.finetune.spec import FineTuneSpec

_STATE, _SPEC = "checkpoint.pt", "spec.json"
_PLACES = {"training_file", "validation_file", "data_parallel", "threads"}


@dataclass
class RunProgress:
    """How far a run is. The position in the data and all randomness follow from seed and step.

    `valid_loss` is the lowest so far, of the checkpoint after `best_step` steps; `stale` counts the
    checkpoints since then.
    """

    step: int = 0
    trained_tokens: int = 0
    base_valid_loss: float | None = None
    valid_loss: float = math.inf
    best_step: int = 0
    stale: int = 0

    def advance(self, tokens: int) -> None:
        """Count one more step, trained on `tokens` tokens."""
        self.step += 1
        self.trained_tokens += tokens

    def score(self, valid_loss: float) -> None:
        """Record the validation loss of this step's checkpoint."""
        self.stale += 1
        if valid_loss < self.valid_loss:
            self.valid_loss, self.best_step, self.stale = valid_loss, self.step, 0


class StateFile:
    """The state in `directory` that a run of `spec` on data of a `digest` resumes from."""

    def __init__(self, directory: Path, spec: FineTuneSpec, digest: str) -> None:
        """Raises TrainingError if the directory holds a run with another spec or other data."""
        self._path = directory / _STATE
        directory.mkdir(parents=True, exist_ok=True)
        # Where the files lie and on how much is computed may differ between machines.
        asked = json.loads(spec.model_dump_json(exclude=_PLACES)) | {"examples": digest}
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

    def save(
        self, model: FineTuneModel, optimizer: torch.optim.Optimizer, progress: RunProgress
    ) -> None:
        """Write the state atomically: a crash leaves this checkpoint or the previous one."""
        state = {
            "parameters": [parameter.detach() for parameter in model.parameters()],
            "optimizer": optimizer.state_dict(),
            "progress": asdict(progress),
        }
        partial = self._path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
        commit(partial, self._path)

    def load(self, model: FineTuneModel, optimizer: torch.optim.Optimizer) -> RunProgress:
        """Restore the last checkpoint; without one, the run starts from the beginning."""
        if not self._path.is_file():
            return RunProgress()
        state = torch.load(self._path, weights_only=True, map_location=model.device)
        with torch.no_grad():
            for mine, saved in zip(model.parameters(), state["parameters"], strict=True):
                mine.copy_(saved)
        optimizer.load_state_dict(state["optimizer"])
        return RunProgress(**state["progress"])
