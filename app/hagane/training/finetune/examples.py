"""Read a training file as examples, or as a report of its faulty lines. Needs no torch."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hagane.data.records import Method, Record, RecordError, parse
from hagane.models.config import ModelConfig
from hagane.system.errors import TrainingError
from hagane.training.finetune.masking import MaskedSequence, Renderer
from hagane.training.finetune.spec import FineTuneSpec, TrainingPlan, resolve
from hagane.training.finetune.trained_tokens import token_ids
from hagane.training.jobs import estimates
from hagane.weights.sources.config import load_config

# At most so many problems are listed.
_LISTED = 100
_LONGEST_LINE = 16 << 20
_DEFAULT_LENGTH = 4096
# Rendered and tokenized at a time.
_CHUNK_LINES, _CHUNK_CHARACTERS = 64, 1 << 20
# Held out for validation: a tenth, but at least 16 as far as a quarter of the examples allows.
_HELD_OUT, _LEAST_HELD_OUT, _MOST_HELD_OUT, _LARGEST_SHARE = 0.1, 16, 256, 0.25
# A mean loss over fewer than these varies by more than most runs improve it.
_FEW = 16

_Sequences = list[MaskedSequence] | RecordError


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """A teacher's likeliest tokens at each of n trained places: int32 ids [n, k], float32 shares
    [n, k] of their probability, which sum to 1."""

    ids: np.ndarray
    shares: np.ndarray


@dataclass(frozen=True, eq=False)
class Example:
    """One sequence to train on, or of a pair the preferred and the rejected one.

    `digest` is that of its tokens: equal examples are never on both sides of a split. One that is
    not `desirable` is to be avoided. `soft` are a teacher's targets for each sequence.
    """

    sequences: tuple[MaskedSequence, ...]
    digest: bytes
    desirable: bool = True
    soft: tuple[SoftTargets, ...] = ()

    def __len__(self) -> int:
        return sum(map(len, self.sequences))

    @property
    def trained_tokens(self) -> int:
        """Number of trained tokens."""
        return sum(int(sequence.loss_mask.sum()) for sequence in self.sequences)


@dataclass
class FileReport:
    """The contents of a training file. `problems` are the first 100 as (line, reason).

    Line 0 stands for the file as a whole. `warnings` prevent nothing. `held_out` examples of the
    file are for validation, not for training. Tokens are counted once, not per epoch; steps,
    seconds and bytes are estimates, of the whole run: of its least bytes where activations are
    computed twice. `plan` is the run's, None for a file with problems.
    """

    problems: list[tuple[int, str]] = field(default_factory=list)
    total_problems: int = 0
    warnings: list[str] = field(default_factory=list)
    examples: int = 0
    held_out: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    truncated: int = 0
    duplicates: int = 0
    steps: int = 0
    seconds: float = 0.0
    memory_bytes: int = 0
    least_memory_bytes: int = 0
    plan: TrainingPlan | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def add_problem(self, line: int, reason: str) -> None:
        self.total_problems += 1
        if len(self.problems) < _LISTED:
            self.problems.append((line, reason))

    def warn_of_few(self) -> None:
        """Warn if the examples held out are too few to decide."""
        if self.held_out < _FEW:
            self.warnings.append(
                f"only {self.held_out} examples are held out to judge the result by, so that small "
                "differences are chance: give more examples, or a validation file"
            )


@dataclass(frozen=True, eq=False)
class Data:
    """Examples to train on, and held-out ones for validation."""

    training: list[Example]
    validation: list[Example]

    @property
    def digest(self) -> str:
        """A hash of all examples in their order, hexadecimal."""
        digest = blake2b(digest_size=16)
        for example in (*self.training, *self.validation):
            digest.update(example.digest)
        return digest.hexdigest()


def context_length(spec_length: int | None, config: ModelConfig) -> int:
    """The length in tokens at which examples are truncated."""
    return min(spec_length or _DEFAULT_LENGTH, config.max_position_embeddings)


def inspect(
    path: Path, directory: Path, method: Method, sequence_length: int | None = None
) -> FileReport:
    """Read the whole file as training for the model of `directory` would.

    Raises ModelError if the model cannot be read.
    """
    spec = FineTuneSpec(
        model=directory, training_file=path, method=method, sequence_length=sequence_length
    )
    return report(spec)


def report(spec: FineTuneSpec) -> FileReport:
    """Read the whole training file of `spec`; steps, time and memory are those of its plan.

    Raises ModelError if the model cannot be read, TrainingError for tokens that it has not.
    """
    config = load_config(spec.model)
    token_ids(spec.model, spec.trained_tokens)
    found, examples = read(spec.training_file, spec, config)
    if not found.total_problems:
        kept, held = examples, 0
        if spec.validation_file is None:
            data = split(examples, spec.seed)
            kept, found.held_out = data.training, len(data.validation)
            held = sum(map(len, data.validation))
            found.warn_of_few()
        else:
            # What is wrong with another file is its own report's to say.
            same = spec.validation_file == spec.training_file
            others = examples if same else read(spec.validation_file, spec, config)[1]
            held = sum(map(len, others))
        plan = resolve(spec, len(kept), config.hidden_size)
        found.plan, found.steps = plan, spec.seeds * plan.steps
        tokens = sum(map(len, kept))
        found.seconds = spec.seeds * estimates.seconds(config, spec, plan, tokens, held)
        longest = max(map(len, examples))
        most, least = (
            estimates.shared_memory(config, spec, longest, checkpointing=again)
            for again in (False, True)
        )
        found.memory_bytes, found.least_memory_bytes = most, least
    return found


def load(spec: FineTuneSpec) -> Data:
    """The examples of a run. Raises TrainingError with the first problems of a bad file."""
    config = load_config(spec.model)
    training = _read_whole(spec.training_file, spec, config)
    if spec.validation_file is None:
        return split(training, spec.seed)
    return Data(training, _read_whole(spec.validation_file, spec, config))


def held_out(digests: Collection[bytes], seed: int) -> set[bytes]:
    """Those of a tenth, shuffled by `seed`: 16 to 256 of them, but no more than a quarter."""
    order = sorted(digests)
    random.Random(seed).shuffle(order)  # noqa: S311 - reproducible, not secret
    wanted = min(max(_LEAST_HELD_OUT, round(_HELD_OUT * len(order))), _MOST_HELD_OUT)
    return set(order[: max(1, min(wanted, int(_LARGEST_SHARE * len(order))))])


def split(examples: list[Example], seed: int) -> Data:
    """Hold out some examples for validation."""
    held = held_out({example.digest for example in examples}, seed)
    kept: list[Example] = []
    reserved: dict[bytes, Example] = {}
    for example in examples:
        if example.digest in held:
            reserved.setdefault(example.digest, example)
        else:
            kept.append(example)
    return Data(kept, list(reserved.values()))


def _read_whole(path: Path, spec: FineTuneSpec, config: ModelConfig) -> list[Example]:
    found, examples = read(path, spec, config)
    if found.total_problems:
        raise TrainingError(problem_summary(path, found), code="invalid_file")
    return examples


def problem_summary(path: Path, found: FileReport) -> str:
    """The first problems of a file in a line."""
    first = "; ".join(f"line {n}: {why}" if n else why for n, why in found.problems[:3])
    more = found.total_problems - 3
    return f"{path.name}: {first}" + (f"; and {more} more problems" if more > 0 else "")


def read(path: Path, spec: FineTuneSpec, config: ModelConfig) -> tuple[FileReport, list[Example]]:
    """All examples of a file, and its report."""
    found, examples = FileReport(), []
    renderer = Renderer(spec.model)
    limit = context_length(spec.sequence_length, config)
    seen: set[bytes] = set()
    try:
        for number, record, answers in _rendered(numbered_lines(path), spec.method, renderer):
            try:
                for example in _examples(record, answers, limit, found):
                    found.duplicates += example.digest in seen
                    seen.add(example.digest)
                    examples.append(example)
            except RecordError as error:
                found.add_problem(number, str(error))
    except RecordError as error:
        found.add_problem(0, str(error))
    if not found.total_problems and len(seen) < 2 and spec.validation_file is None:
        found.add_problem(0, f"has {len(seen)} distinct examples: at least 2 are needed, one of "
                             "which is held out to judge the result by")  # fmt: skip
    if not found.total_problems and not examples:
        found.add_problem(0, "has no examples")
    found.examples = len(examples)
    found.tokens = sum(map(len, examples))
    found.trained_tokens = sum(example.trained_tokens for example in examples)
    return found, examples


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank. Raises RecordError where the file is no text."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_LONGEST_LINE + 1):
                number += 1
                if len(line) > _LONGEST_LINE:
                    raise RecordError(f"line {number} is longer than {_LONGEST_LINE >> 20} MiB")
                if text := _decoded(line, number).strip():
                    yield number, text
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from None


def _decoded(line: bytes, number: int) -> str:
    if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise RecordError("is UTF-16; save it as UTF-8")
    if b"\0" in line:
        raise RecordError(f"is binary or UTF-16 (line {number} has a zero byte); JSON Lines are "
                          "UTF-8 text")  # fmt: skip
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(
            f"is not UTF-8 text: line {number} has byte 0x{line[error.start]:02x} at offset "
            f"{error.start}"
        ) from None


def _rendered(
    lines: Iterator[tuple[int, str]], method: Method, renderer: Renderer
) -> Iterator[tuple[int, Record | RecordError, list[_Sequences]]]:
    """Every line's number and record, and its answers, as many as `method` has in one."""
    for chunk in _chunks(lines):
        records = [_parsed(line, method) for _, line in chunk]
        answers = [a for record in records if isinstance(record, tuple) for a in record]
        sequences = iter(renderer.sequences(answers))
        for (number, _), record in zip(chunk, records, strict=True):
            if isinstance(record, RecordError):
                yield number, record, []
            else:
                yield number, record, list(islice(sequences, len(record)))


def _chunks(lines: Iterator[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Lines to be rendered together. What ends `lines` is raised after those before it."""
    chunk: list[tuple[int, str]] = []
    size = 0
    try:
        for number, line in lines:
            chunk.append((number, line))
            size += len(line)
            if len(chunk) == _CHUNK_LINES or size > _CHUNK_CHARACTERS:
                yield chunk
                chunk, size = [], 0
    except RecordError:
        yield chunk
        raise
    yield chunk


def _parsed(line: str, method: Method) -> Record | RecordError:
    try:
        return parse(line, method)
    except RecordError as error:
        return error


def _examples(
    record: Record | RecordError, answers: list[_Sequences], limit: int, found: FileReport
) -> Iterator[Example]:
    if isinstance(record, RecordError):
        raise record
    turns = []
    for sequences in answers:
        if isinstance(sequences, RecordError):
            raise sequences
        turns.append(sequences)
    if len(turns) > 1 and any(len(sequences) != 1 for sequences in turns):
        raise RecordError("has several turns that the chat template renders apart: keep one answer")
    for together in zip(*turns, strict=True):
        found.truncated += any(len(sequence) > limit for sequence in together)
        kept = tuple(sequence.cut(limit) for sequence in together)
        if not all(sequence.loss_mask.any() for sequence in kept):
            raise RecordError(f"has nothing to learn in its first {limit} tokens")
        if len(kept) > 1 and np.array_equal(kept[0].tokens, kept[1].tokens):
            raise RecordError(f"has two answers that are the same in their first {limit} tokens")
        digest = blake2b(digest_size=16)
        for sequence in kept:
            digest.update(sequence.tokens.tobytes() + b"|" + sequence.loss_mask.tobytes())
        digest.update(b"" if record[0].desirable else b"avoid")
        yield Example(kept, digest.digest(), record[0].desirable)
