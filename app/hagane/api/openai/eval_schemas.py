"""The bodies of OpenAI's evals API, and its objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hagane.api.fields import Body, Count, Flag, Metadata, ModelName, Number
from hagane.graders.spec import Grader, GraderMessage
from hagane.store.answers.evals import Eval, EvalItem, EvalRun

_MOST_ITEMS = 10_000
_Name = Annotated[str, Field(min_length=1, max_length=256)]


class DataSourceConfig(Body):
    """The shape of items: `custom` ones follow a JSON schema, the others are stored completions."""

    type: Literal["custom", "stored_completions", "logs"]
    item_schema: dict[str, Any] | None = None
    include_sample_schema: Flag = False
    metadata: Metadata | None = None


class EvalBody(Body):
    """POST /v1/evals."""

    name: _Name = "eval"
    data_source_config: DataSourceConfig
    testing_criteria: Annotated[list[Grader], Field(min_length=1, max_length=32)]
    metadata: Metadata | None = None


class EvalUpdateBody(Body):
    """POST /v1/evals/{eval_id}."""

    name: _Name | None = None
    metadata: Metadata | None = None


class ContentRow(Body):
    """One item, with the answer to grade where no model answers."""

    item: dict[str, Any]
    sample: dict[str, Any] | None = None


class Source(Body):
    """Where items come from: the request, a file of such lines, or stored completions."""

    type: Literal["file_content", "file_id", "stored_completions"]
    content: Annotated[list[ContentRow], Field(max_length=_MOST_ITEMS)] | None = None
    id: Annotated[str, Field(max_length=128)] | None = None
    metadata: Metadata | None = None
    model: ModelName | None = None
    created_after: Annotated[Count, Field(ge=0)] | None = None
    created_before: Annotated[Count, Field(ge=0)] | None = None
    limit: Annotated[Count, Field(ge=1, le=_MOST_ITEMS)] | None = None

    @model_validator(mode="after")
    def have_items(self) -> Source:
        needed = {"file_content": self.content, "file_id": self.id}
        if self.type in needed and needed[self.type] is None:
            raise ValueError(f"a source of type '{self.type}' needs its items")
        return self


class InputMessages(Body):
    """The model's input: messages with places to fill, or messages of the item."""

    type: Literal["template", "item_reference"]
    template: Annotated[list[GraderMessage], Field(min_length=1, max_length=64)] | None = None
    item_reference: Annotated[str, Field(max_length=256)] | None = None

    @model_validator(mode="after")
    def say_which(self) -> InputMessages:
        if self.template is None and self.item_reference is None:
            raise ValueError(f"'{self.type}' is missing")
        return self


class Sampling(Body):
    """How the model answers."""

    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    seed: Count | None = None
    max_completion_tokens: Annotated[Count, Field(ge=1)] | None = None


class DataSource(Body):
    """`jsonl` grades answers that are there, `completions` requests them from `model`."""

    type: Literal["jsonl", "completions"]
    source: Source
    model: ModelName | None = None
    input_messages: InputMessages | None = None
    sampling_params: Sampling | None = None

    @model_validator(mode="after")
    def name_a_model(self) -> DataSource:
        if self.type == "completions" and self.model is None:
            raise ValueError("'completions' needs a model")
        unasked = self.input_messages is None and self.source.type != "stored_completions"
        if self.type == "completions" and unasked:
            raise ValueError("'completions' needs input_messages")
        return self


class RunBody(Body):
    """POST /v1/evals/{eval_id}/runs."""

    name: _Name = "run"
    data_source: DataSource
    metadata: Metadata | None = None


def describe_eval(made: Eval) -> dict[str, Any]:
    """OpenAI's `eval`."""
    return {"object": "eval", **vars(made)}


def describe_run(
    run: EvalRun,
    criteria: Sequence[dict[str, Any]],
    results: Iterable[tuple[int, str, Sequence[dict[str, Any]]]],
) -> dict[str, Any]:
    """OpenAI's `eval.run`, with the counts of the results so far."""
    statuses: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for _, status, graded in results:
        statuses[status] += 1
        for result in graded:
            (passed if result["passed"] else failed)[result["name"]] += 1
    shown = {k: v for k, v in vars(run).items() if k not in ("eval", "total")}
    counts = {"errored": statuses["error"], "failed": statuses["fail"], "passed": statuses["pass"]}
    return {
        "object": "eval.run",
        **shown,
        "eval_id": run.eval,
        "report_url": "",
        "result_counts": {"total": run.total, **counts},
        "per_model_usage": [],
        "per_testing_criteria_results": [
            {
                "testing_criteria": c["name"],
                "passed": passed[c["name"]],
                "failed": failed[c["name"]],
            }
            for c in criteria
        ],
    }


def describe_item(item: EvalItem, eval_id: str) -> dict[str, Any]:
    """OpenAI's `eval.run.output_item`."""
    return {
        "object": "eval.run.output_item",
        "id": item.id,
        "created_at": item.created_at,
        "eval_id": eval_id,
        "run_id": item.run,
        "status": item.status,
        "datasource_item_id": item.number,
        "datasource_item": item.item,
        "results": item.results,
        "sample": item.sample,
    }
