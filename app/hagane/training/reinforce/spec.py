"""The specification of a run of reinforcement learning. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from hagane.graders.spec import Grader, Multi, ScoreModel
from hagane.training.finetune.spec import Auto, FineTuneSpec, TrainingPlan, learning_rate, steps_of

_GROUP = 8
_BATCH = 8
# "auto" makes about this many steps, within 1 to 25 passes over the file.
_STEPS, _MOST_EPOCHS = 60, 25
_EVALUATIONS = 6


class ReinforceSpec(FineTuneSpec):
    """Everything that determines a run; hyperparameters have OpenAI's names.

    A step samples `group_size` answers (by default 8 x `compute_multiplier`) of at most
    `max_completion_tokens` tokens to each of `batch_size` tasks, and learns from them in `updates`
    updates. Every `eval_interval` steps, `eval_samples` answers to each held-out task are graded.
    `kl` is the weight of the divergence from the base. `base_name` is how graders may call it.
    """

    method: Literal["reinforcement"] = "reinforcement"
    grader: Grader
    compute_multiplier: Annotated[float, Field(gt=0, le=16)] | Auto = "auto"
    eval_interval: Annotated[int, Field(ge=1)] | Auto = "auto"
    eval_samples: Annotated[int, Field(ge=1, le=64)] | Auto = "auto"
    group_size: Annotated[int, Field(ge=2, le=128)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=65536)] = 256
    updates: Annotated[int, Field(ge=1, le=64)] = 1
    kl: Annotated[float, Field(ge=0, le=10)] = 0.01
    base_name: str = ""

    @model_validator(mode="after")
    def _applicable(self) -> Self:
        if self.full:
            raise ValueError("reinforcement changes an adapter of the model that answers: no full")
        if self.seeds > 1:
            raise ValueError("reinforcement takes one seed")
        graders = self.grader.graders.values() if isinstance(self.grader, Multi) else [self.grader]
        for grader in graders:
            if isinstance(grader, ScoreModel) and grader.model != self.base_name:
                raise ValueError(
                    f"grader {grader.name!r} asks {grader.model!r}; in a job only the base model "
                    f"{self.base_name!r} can be asked"
                )
        return self

    @property
    def group(self) -> int:
        """Answers to each task of a step."""
        times = 1.0 if self.compute_multiplier == "auto" else self.compute_multiplier
        return self.group_size or max(2, round(_GROUP * times))

    @property
    def samples(self) -> int:
        """Answers to each held-out task."""
        return 1 if self.eval_samples == "auto" else self.eval_samples


def read_spec(values: Mapping[str, Any]) -> FineTuneSpec:
    """The specification of a job, of either kind. Raises pydantic's ValidationError."""
    kind = ReinforceSpec if values.get("method") == "reinforcement" else FineTuneSpec
    return kind.model_validate(values)


def resolve_reinforcement(spec: ReinforceSpec, tasks: int, hidden_size: int) -> TrainingPlan:
    """Resolve the plan for `tasks` training tasks, without held-out ones."""
    batch: int = min(_BATCH if spec.batch_size == "auto" else spec.batch_size, tasks)
    chosen = min(max(_STEPS * batch // tasks, 1), _MOST_EPOCHS)
    epochs: int = chosen if spec.n_epochs == "auto" else spec.n_epochs
    steps = steps_of(epochs, tasks, batch)
    interval = spec.checkpoint_every or -(-steps // _EVALUATIONS)
    return TrainingPlan(
        epochs=epochs,
        batch_size=batch,
        steps=steps,
        warmup_steps=min(max(steps // 20, 1), 10),
        learning_rate=learning_rate(spec, hidden_size),
        beta=spec.kl,
        checkpoint_every=interval if spec.eval_interval == "auto" else spec.eval_interval,
    )
