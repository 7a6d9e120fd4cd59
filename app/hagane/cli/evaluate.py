"""`hagane eval`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg

from hagane.cli.command import Options, read
from hagane.evaluation.comparison import SideBySide, compare_scores
from hagane.evaluation.graded import GradedEval, GradedResult, evaluate_graded, read_items
from hagane.evaluation.run import Evaluation
from hagane.evaluation.run import run as run_evaluation
from hagane.pool.messages import EngineConfig
from hagane.server.engine_config import engine_config
from hagane.system.logging import configure_logging
from hagane.system.settings import Settings
from hagane.system.weight_formats import FormatChoice
from hagane.text.hub import resolve_model

# Options that take several values, one after the other.
_LISTS = ("--text", "--questions")


class EvaluateOptions(Options):
    """Measure how well a model predicts text, answers questions, and does by graders."""

    model: CliPositionalArg[str] = Field(description="model directory, store name or hub id")
    text: list[Path] = Field([], description="text or JSON Lines files, one or several")
    questions: list[Path] = Field([], description="JSON Lines files, one or several")
    graders: Path | None = Field(
        None, description="JSON file with template and testing_criteria, as in the evals API"
    )
    items: Path | None = Field(None, description="JSON Lines file of items for the graders")
    baseline: str | None = Field(None, description="another model to compare with by the graders")
    limit: int | None = Field(None, description="documents, questions or items of a file at most")
    quantize: FormatChoice = Field("none", description="weights")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of computation")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int | None = Field(None, description="default: one per usable core")
    as_json: bool = Field(False, alias="json", description="print one JSON object")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if (self.graders is None) != (self.items is None):
            raise ValueError("--graders and --items go together")
        if not self.text and not self.questions and self.graders is None:
            raise ValueError("give a file with --text or --questions, or --graders with --items")
        if self.baseline is not None and self.graders is None:
            raise ValueError("--baseline needs --graders")
        return self

    @property
    def plan(self) -> Evaluation:
        """The files and how much of each."""
        return Evaluation(tuple(self.text), tuple(self.questions), self.limit)


def read_options(arguments: Sequence[str]) -> EvaluateOptions:
    """Raises ConfigurationError or ValidationError, as `read` does."""
    return read(EvaluateOptions, _one_value_each(arguments), "eval")


def run(arguments: list[str]) -> int:
    """Evaluate on an engine of its own, and print the results."""
    options = read_options(arguments)
    configure_logging("warning", "auto")
    directory = resolve_model(options.model)
    settings = Settings(
        _cli_parse_args=False,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        threads=options.threads,
    )
    results: dict[str, Any] = {}
    config = engine_config(settings, str(directory))
    if options.text or options.questions:
        measured = asyncio.run(run_evaluation(config, options.plan))
        results |= {str(path): result for path, result in measured.items()}
    if options.graders is not None and options.items is not None:
        results |= _grade(options, config, options.graders, options.items)
    if options.as_json:
        print(json.dumps({name: asdict(result) for name, result in results.items()}))
        return 0
    for name, result in results.items():
        print(f"{name}: {result}")
    return 0


def _grade(
    options: EvaluateOptions, config: EngineConfig, graders: Path, items: Path
) -> dict[str, GradedResult | SideBySide]:
    """The results by graders, of the baseline too where there is one, and both side by side."""
    plan, asked = GradedEval.load(graders), read_items(items, options.limit)
    ours = asyncio.run(evaluate_graded(config, plan, asked))
    results: dict[str, GradedResult | SideBySide] = {options.model: ours}
    if options.baseline is not None:
        other = msgspec.structs.replace(config, model=str(resolve_model(options.baseline)))
        theirs = asyncio.run(evaluate_graded(other, plan, asked))
        results[options.baseline] = theirs
        both = f"{options.model} against {options.baseline}"
        results[both] = compare_scores(theirs.totals, ours.totals)
    return results


def _one_value_each(arguments: Sequence[str]) -> list[str]:
    """`--text A B` as `--text A --text B`, which is how the settings library reads lists."""
    spread: list[str] = []
    current: str | None = None
    for argument in arguments:
        if argument.startswith("-"):
            current = argument if argument in _LISTS else None
            spread += [] if current else [argument]
        elif current:
            # A list in JSON: the library splits plain values at their commas.
            spread += [current, json.dumps([argument])]
        else:
            spread.append(argument)
    return spread
