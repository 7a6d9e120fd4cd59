"""A teacher's distributions over the trained tokens of all examples, computed once for a run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hagane.pool.messages import SamplingParams, TokenLogprobs
from hagane.system.errors import TrainingError
from hagane.system.files import commit
from hagane.text.tokenizer import Tokenizer
from hagane.training.finetune.examples import Data, SoftTargets
from hagane.training.finetune.masking import MaskedSequence
from hagane.training.finetune.spec import FineTuneSpec
from hagane.training.jobs.answering_engine import AnsweringEngine, SeededPrompt, answering_config

_FILE = "teacher.npz"
# Vocabularies that tell this apart are not the same.
_PROBE = "The cat, 42 years old: \u9244\u306f\u71b1\u3044\n\tdef f(x): return x**2  # cafe\u0301"


def taught(spec: FineTuneSpec, teacher: Path, data: Data, directory: Path) -> Data:
    """`data` with soft targets by the model in `teacher`, kept in `directory` for a resumption.

    Raises TrainingError if the teacher has another vocabulary, or the engine's HaganeError.
    """
    own, other = (Tokenizer.load(path).encode(_PROBE) for path in (spec.model, teacher))
    if own != other:
        raise TrainingError(
            f"{teacher} has another vocabulary than {spec.model}: its probabilities mean other "
            "tokens; train on its answers instead",
            code="invalid_model",
        )
    examples = [*data.training, *data.validation]
    sequences = [sequence for example in examples for sequence in example.sequences]
    stored = directory / f"{data.digest}-{_FILE}"
    if not stored.is_file():
        _store(stored, _ask(spec, teacher, sequences))
    with np.load(stored) as arrays:
        ids, shares = arrays["ids"], arrays["shares"]
    ends = np.cumsum([int(sequence.loss_mask.sum()) for sequence in sequences])[:-1]
    targets = map(SoftTargets, np.split(ids, ends), np.split(shares, ends))
    soft = [replace(e, soft=tuple(next(targets) for _ in e.sequences)) for e in examples]
    count = len(data.training)
    return Data(soft[:count], soft[count:])


def _store(path: Path, targets: Sequence[SoftTargets]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(
            file,
            ids=np.concatenate([one.ids for one in targets]),
            shares=np.concatenate([one.shares for one in targets]),
        )
    commit(partial, path)


def _ask(
    spec: FineTuneSpec, teacher: Path, sequences: Sequence[MaskedSequence]
) -> list[SoftTargets]:
    config = answering_config(spec, teacher, max(map(len, sequences)) + 1)
    sampling = SamplingParams(max_tokens=1, ignore_eos=True, prompt_logprobs=spec.teacher_tokens)
    with AnsweringEngine(config) as engine:

        async def one(sequence: MaskedSequence) -> SoftTargets:
            prompt = SeededPrompt(tuple(sequence.tokens.tolist()), 1, 0)
            (answer,) = await engine.answer(prompt, None, sampling)
            return _targets(sequence, answer.prompt_scores, spec.teacher_tokens)

        async def ask() -> list[SoftTargets]:
            return list(await asyncio.gather(*map(one, sequences)))

        return engine.run(ask())


def _targets(
    sequence: MaskedSequence, scores: Sequence[TokenLogprobs | None], count: int
) -> SoftTargets:
    entries = [
        entry
        for entry, trained in zip(scores, sequence.loss_mask, strict=True)
        if trained and entry is not None
    ]
    ids = np.array([[token for token, _ in e.top[:count]] for e in entries], dtype=np.int32)
    logprobs = np.array([[p for _, p in e.top[:count]] for e in entries], dtype=np.float32)
    shares = np.exp(logprobs)
    return SoftTargets(ids, shares / shares.sum(axis=1, keepdims=True))
