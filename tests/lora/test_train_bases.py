"""Adapters on bases that other programs quantized: trained on them, and served on them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hagane.pool.messages import AdapterRef
from hagane.training.finetune.loop import finetune
from hagane.training.finetune.spec import FineTuneSpec
from safetensors.torch import save_file

from tests.support.engine import Answer, RunningEngine, config, logprobs_of, make_adapter, merged
from tests.support.gguf import dequantized, write_gguf
from tests.support.quantized import KINDS, write_quantized
from tests.training.finetune.test_loop import SKY, Recorder, conversation, write_lines

PROMPT = tuple(range(40, 60))


@dataclass(frozen=True)
class Base:
    """A quantized model, and a directory of the floats that its weights are."""

    path: Path
    plain: Path


FAST = ("Q4_0", "gptq-ordered", "fp8-blocks")
SLOW = ("Q8_0", "awq", "w4a16-asymmetric", "w8a8")


@pytest.fixture(
    scope="module", params=[*FAST, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]
)
def base(request, tiny_model_dir, tmp_path_factory) -> Base:
    root = tmp_path_factory.mktemp(request.param)
    if request.param in KINDS:
        path = root / "base"
        values = write_quantized(tiny_model_dir, path, KINDS[request.param])
    else:
        path = write_gguf(tiny_model_dir, root / "base.gguf", request.param)
        values = dequantized(tiny_model_dir, request.param)
    plain = root / "plain"
    plain.mkdir()
    (plain / "config.json").write_text((tiny_model_dir / "config.json").read_text())
    stored = {name: tensor.contiguous() for name, tensor in values.items()}
    save_file(stored, plain / "model.safetensors", metadata={"format": "pt"})
    return Base(path, plain)


# With the bits of the file inputs are in 8 bits, which a random model shows.
@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-3), ("bfloat16", 0.3)])
def test_an_adapter_is_served_as_if_merged_into_the_floats(base, tmp_path, dtype, close):
    adapter = make_adapter(tmp_path / "adapter", base.plain, 1)
    with RunningEngine(config(base.path, dtype=dtype)) as engine:
        for name, wanted in (("base", None), ("adapter", adapter)):
            engine.ask(name, PROMPT, wanted, tokens=20)
        answers = engine.wait("base", "adapter")
    for answer, wanted, other in zip(answers, (None, adapter), (adapter, None), strict=True):
        assert distance(base, wanted, answer) < close
        assert distance(base, other, answer) > 0.5


def distance(base: Base, adapter: AdapterRef | None, answer: Answer) -> float:
    """Of log-probabilities from those of transformers with the adapter merged, on average."""
    expected = logprobs_of(merged(base.plain, adapter), PROMPT, answer.tokens)
    pairs = zip(answer.logprobs, expected, strict=True)
    return sum(abs(ours - theirs) for ours, theirs in pairs) / len(expected)


def test_an_adapter_is_trained_on_it_and_served(base, tmp_path):
    records = [conversation(f"What colour, {i}?", SKY * (1 + i % 3)) for i in range(20)]
    spec = FineTuneSpec(
        model=base.path,
        training_file=write_lines(tmp_path / "train.jsonl", records),
        n_epochs=4, batch_size=4, learning_rate=5e-3, rank=4, threads=1,
    )  # fmt: skip
    result = finetune(spec, tmp_path / "run", Recorder())
    assert result.valid_loss < 0.5 * result.base_valid_loss
    adapter = AdapterRef("trained", str(result.directory), result.digest)
    named = json.loads((result.directory / "adapter_config.json").read_text())
    assert named["base_model_name_or_path"]
    with RunningEngine(config(base.path)) as engine:
        engine.ask("trained", PROMPT, adapter)
        (answer,) = engine.wait("trained")
    assert distance(base, adapter, answer) < 1e-3
