"""OpenAI's fine-tuning bodies and objects, and the `extra` block added to them.

Numbers are checked by `FineTuneSpec`, which has their bounds; here are their kinds and places.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from hagane.api.fields import Body, Count, Flag, Number
from hagane.data.records import Method as TrainingMethod
from hagane.graders.spec import Grader
from hagane.store.jobs import Event, Job, JobCheckpoint
from hagane.system.weight_formats import FormatChoice

# Hyperparameters that a plan resolves, and its names for them.
_RESOLVED = {
    "n_epochs": "epochs",
    "batch_size": "batch_size",
    "beta": "beta",
    "eval_interval": "checkpoint_every",
}

IntegerOrAuto = Count | Literal["auto"]
NumberOrAuto = Number | Literal["auto"]


class Hyperparameters(Body):
    n_epochs: IntegerOrAuto = "auto"
    batch_size: IntegerOrAuto = "auto"
    learning_rate_multiplier: NumberOrAuto = "auto"


class PreferenceHyperparameters(Hyperparameters):
    beta: NumberOrAuto = "auto"


class Supervised(Body):
    hyperparameters: Hyperparameters = Hyperparameters()


class Preference(Body):
    hyperparameters: PreferenceHyperparameters = PreferenceHyperparameters()


class ReinforcementHyperparameters(Hyperparameters):
    compute_multiplier: NumberOrAuto = "auto"
    eval_interval: IntegerOrAuto = "auto"
    eval_samples: IntegerOrAuto = "auto"
    reasoning_effort: Literal["default"] = "default"


class Reinforcement(Body):
    grader: Grader
    hyperparameters: ReinforcementHyperparameters = ReinforcementHyperparameters()


class Method(Body):
    """OpenAI's methods, and the extensions orpo and kto. Only the block of `type` may be given."""

    type: TrainingMethod
    supervised: Supervised | None = None
    dpo: Preference | None = None
    orpo: Preference | None = None
    kto: Preference | None = None
    reinforcement: Reinforcement | None = None

    @property
    def block(self) -> Supervised | Preference | Reinforcement | None:
        """The block of the method's own name."""
        found: Supervised | Preference | Reinforcement | None = getattr(self, self.type)
        return found


class Extra(Body):
    """Extensions of OpenAI's contract; fields left out keep the defaults of `FineTuneSpec`.

    `quantize` follows the server's own, so that an adapter is trained on what it will be served on.
    `promote` is the gate: whether the result goes live always, if its validation loss is below the
    base model's, or when an admin decides so. `teacher` names a larger model in the store, or one
    that a job made. The last four are of reinforcement, whose loss is the mean reward, negated.
    """

    rank: Count | None = None
    alpha: Number | None = None
    target_modules: list[str] | None = None
    rslora: Flag | None = None
    dora: Flag | None = None
    trained_tokens: list[str] | None = None
    checkpointing: Flag | None = None
    sequence_length: Count | None = None
    full: Flag | None = None
    learning_rate: Number | None = None
    patience: Count | None = None
    seeds: Count | None = None
    neftune_alpha: Number | None = None
    data_parallel: Count | None = None
    teacher: str | None = None
    teacher_weight: Number | None = None
    quantize: FormatChoice | None = None
    promote: Literal["always", "if_better", "manual"] = "if_better"
    group_size: Count | None = None
    max_completion_tokens: Count | None = None
    updates: Count | None = None
    kl: Number | None = None


class JobBody(Body):
    """POST /v1/fine_tuning/jobs. `hyperparameters` is OpenAI's older place for `method`'s."""

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w.-]+$")] | None = None
    seed: Annotated[Count, Field(ge=0, lt=1 << 31)] | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    metadata: (
        Annotated[
            dict[
                Annotated[str, Field(max_length=64)],
                Annotated[str, Field(max_length=512)],
            ],
            Field(max_length=16),
        ]
        | None
    ) = None
    integrations: Annotated[list[Any], Field(max_length=0)] | None = None
    extra: Extra = Extra()


def describe_job(job: Job) -> dict[str, Any]:
    """OpenAI's job object; `extra` has what it lacks: the options, and what the gate saw."""
    if job.kind == "pretraining":
        return _describe_pretraining(job)
    method, plan = job.request["method"], job.plan or {}
    hyperparameters = dict(method[method["type"]]["hyperparameters"])
    for name, key in _RESOLVED.items():
        if hyperparameters.get(name) == "auto" and key in plan:
            hyperparameters[name] = plan[key]
    if hyperparameters["learning_rate_multiplier"] == "auto" and plan:
        hyperparameters["learning_rate_multiplier"] = 1.0
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "estimated_finish": _estimated_finish(job),
        "model": job.model,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": "hagane",
        "status": job.status,
        "hyperparameters": hyperparameters,
        "method": {
            "type": method["type"],
            method["type"]: method[method["type"]] | {"hyperparameters": hyperparameters},
        },
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "result_files": (job.result or {}).get("files", []),
        "trained_tokens": job.trained_tokens,
        "error": job.error,
        "seed": job.request["seed"],
        "metadata": job.request["metadata"],
        "integrations": [],
        "extra": {
            **job.request["extra"],
            "adapter": job.model_name,
            "plan": job.plan,
            "progress": job.progress,
            "result": job.result,
        },
    }


def _describe_pretraining(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": "pretraining.job",
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "estimated_finish": _estimated_finish(job),
        "name": job.model,
        "model": job.fine_tuned_model,
        "status": job.status,
        "config": job.spec,
        "promote": job.request.get("promote", "if_better"),
        "max_bits_per_byte": job.request.get("max_bits_per_byte"),
        "trained_tokens": job.trained_tokens,
        "error": job.error,
        "metadata": job.request["metadata"],
        "progress": job.progress,
        "result": job.result,
    }


def _estimated_finish(job: Job) -> int | None:
    if job.status != "running" or job.progress is None or job.heartbeat_at is None:
        return None
    return int(job.heartbeat_at + job.progress["eta_seconds"])


def describe_event(event: Event) -> dict[str, Any]:
    """OpenAI's event object."""
    return {"object": "fine_tuning.job.event", **vars(event)}


def describe_checkpoint(checkpoint: JobCheckpoint, job_id: str) -> dict[str, Any]:
    """OpenAI's checkpoint object. The whole validation set is scored every time."""
    metrics = dict(checkpoint.metrics)
    for name in ("valid_loss", "valid_mean_token_accuracy"):
        metrics[f"full_{name}"] = metrics.get(name)
    return {
        "id": checkpoint.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": checkpoint.created_at,
        "fine_tuned_model_checkpoint": checkpoint.name,
        "fine_tuning_job_id": job_id,
        "step_number": checkpoint.step,
        "metrics": metrics,
    }
