"""Many adapters in one batch, against models that the adapters were merged into."""

from __future__ import annotations

import threading

import pytest
import torch
from hagane.engine.step.runner import ModelRunner
from hagane.kernels import cpu, reference
from hagane.lora.config import TARGETS, adapter_digest
from hagane.lora.files import load_adapter
from hagane.pool.messages import AdapterRef, CancelRequest, CheckAdapter, UnloadAdapter
from safetensors.torch import load_file, save_file

from tests.support.engine import RunningEngine, config, logprobs_of, make_adapter, merged

PROMPT = tuple(range(40, 75))
BACKENDS = (
    pytest.param(
        cpu, marks=pytest.mark.skipif(not cpu.available(), reason="kernels not built"), id="cpu"
    ),
    pytest.param(reference, id="reference"),
)


@pytest.fixture(scope="module")
def adapters(tiny_model_dir, tmp_path_factory) -> list[AdapterRef]:
    """Of different ranks and targets."""
    directory = tmp_path_factory.mktemp("adapters")
    kinds = [(4, TARGETS), (8, ("q_proj", "v_proj")), (3, ("down_proj",))]
    plain = [
        make_adapter(directory / f"a{seed}", tiny_model_dir, seed, rank=rank, targets=targets)
        for seed, (rank, targets) in enumerate(kinds)
    ]
    scaled = make_adapter(
        directory / "dora", tiny_model_dir, 3, targets=("k_proj", "o_proj", "up_proj"), dora=True
    )
    # Of the prompts and of the answers.
    renamed = make_adapter(directory / "tokens", tiny_model_dir, 4, tokens=(50, 43, 61, 7, 200))
    return [*plain, scaled, renamed]


@pytest.mark.parametrize("operations", BACKENDS)
@pytest.mark.parametrize("memory", [1 << 22, 48 << 10], ids=["room", "preemption"])
def test_each_row_is_its_merged_models(operations, tiny_model_dir, adapters, memory):
    wanted = [None, *adapters, *adapters]
    prompts = [PROMPT[i : i + 20] for i in range(len(wanted))]
    settings = config(tiny_model_dir, kv_cache_memory=memory, context_length=64)
    runner = ModelRunner(settings, operations=operations)
    with RunningEngine(settings, runner=runner) as engine:
        for i, adapter in enumerate(wanted):
            engine.ask(str(i), prompts[i], adapter, tokens=40)
        answers = engine.wait(*map(str, range(len(wanted))))
        assert (engine.stats.preemptions > 0) == (memory < 1 << 20)
        assert engine.stats.adapters.loads == len(adapters)
    for adapter, prompt, answer in zip(wanted, prompts, answers, strict=True):
        expected = logprobs_of(merged(tiny_model_dir, adapter), prompt, answer.tokens)
        assert answer.logprobs == pytest.approx(expected, abs=2e-3)
    assert len({tuple(answer.tokens) for answer in answers[:6]}) == 6


def test_a_result_does_not_depend_on_what_else_runs(tiny_model_dir, adapters):
    if not cpu.available():
        pytest.skip("kernels not built")
    wanted = [None, *adapters, adapters[0]]
    with RunningEngine(config(tiny_model_dir, prefix_caching=False)) as engine:
        for i, adapter in enumerate(wanted):
            engine.ask(f"alone {i}", PROMPT[i:], adapter)
            engine.wait(f"alone {i}")
        for i, adapter in enumerate(wanted):
            engine.ask(f"together {i}", PROMPT[i:], adapter)
        together = engine.wait(*(f"together {i}" for i in range(len(wanted))))
        alone = [engine.answers[f"alone {i}"] for i in range(len(wanted))]
    assert [a.tokens for a in alone] == [a.tokens for a in together]
    assert [a.logprobs for a in alone] == [a.logprobs for a in together]
    # Nor does the base's on whether adapters are served at all.
    with RunningEngine(config(tiny_model_dir, prefix_caching=False)) as plain:
        plain.ask("base", PROMPT)
        assert plain.wait("base")[0].logprobs == alone[0].logprobs


def test_cached_blocks_belong_to_the_adapters_content(tiny_model_dir, tmp_path, adapters):
    first = make_adapter(tmp_path / "versioned", tiny_model_dir, 10)
    with RunningEngine(config(tiny_model_dir)) as engine:
        for turn in ("new", "again"):
            for name, adapter in (("base", None), ("a", adapters[0]), ("v1", first)):
                engine.ask(f"{name} {turn}", PROMPT, adapter)
                engine.wait(f"{name} {turn}")
        second = make_adapter(tmp_path / "versioned", tiny_model_dir, 11)
        assert second.name == first.name and second.directory == first.directory
        engine.ask("v2", PROMPT, second)
        engine.wait("v2")
        copy = AdapterRef("another name", adapters[0].directory, adapters[0].digest)
        engine.ask("copy", PROMPT, copy)
        engine.wait("copy")
        answers = engine.answers
    for name in ("base", "a", "v1"):
        assert answers[f"{name} new"].cached == 0
        assert answers[f"{name} again"].cached == 32
        assert answers[f"{name} again"].tokens == answers[f"{name} new"].tokens
    assert answers["v2"].cached == 0
    assert answers["copy"].cached == 32
    expected = logprobs_of(merged(tiny_model_dir, second), PROMPT, answers["v2"].tokens)
    assert answers["v2"].logprobs == pytest.approx(expected, abs=2e-3)


def test_memory_is_bounded_and_pinned_ones_stay(tiny_model_dir, tmp_path):
    adapters = [make_adapter(tmp_path / f"b{i}", tiny_model_dir, 20 + i) for i in range(4)]
    with RunningEngine(config(tiny_model_dir)) as probe:
        probe.ask("size", PROMPT, adapters[0])
        probe.wait("size")
        size = probe.stats.adapters.nbytes
    most = 0
    with RunningEngine(config(tiny_model_dir, adapter_memory=2 * size)) as engine:
        names = [f"{turn} {i}" for turn in range(2) for i in range(4)]
        for name in names:
            engine.ask(name, PROMPT, adapters[int(name[-1])], tokens=40)

        def bounded() -> bool:
            nonlocal most
            most = max(most, engine.stats.adapters.nbytes)
            return all(engine.answers[name].finished for name in names)

        engine.wait_for(bounded)
        assert most == 2 * size
        assert engine.stats.adapters.evictions >= 2
        assert engine.stats.adapters.loaded == 2
        answers = [engine.answers[name] for name in names]
    for adapter, answer in zip(adapters, answers, strict=False):
        expected = logprobs_of(merged(tiny_model_dir, adapter), PROMPT, answer.tokens)
        assert answer.logprobs == pytest.approx(expected, abs=2e-3)
    with RunningEngine(config(tiny_model_dir, adapter_memory=size - 1)) as engine:
        engine.ask("too large", PROMPT, adapters[0])
        (answer,) = engine.wait("too large")
        assert answer.error is not None and "adapter_memory" in answer.error.message


def test_a_broken_adapter_fails_its_requests_alone(tiny_model_dir, tmp_path, adapters):
    broken = {
        "does not exist": AdapterRef("gone", str(tmp_path / "gone"), "0"),
        "has changed": AdapterRef("changed", adapters[0].directory, "0" * 64),
        "truncated": make_adapter(tmp_path / "short", tiny_model_dir, 5),
        "not finite": make_adapter(tmp_path / "nan", tiny_model_dir, 6),
    }
    weights = tmp_path / "short" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    broken["not finite"] = _with_nan(tmp_path / "nan")
    with RunningEngine(config(tiny_model_dir)) as engine:
        for reason, adapter in broken.items():
            engine.send(CheckAdapter(adapter))
            engine.ask(reason, PROMPT, adapter)
        engine.ask("base", PROMPT)
        engine.ask("sound", PROMPT, adapters[0])
        engine.wait(*broken, "base", "sound")
        for reason, adapter in broken.items():
            failure = engine.answers[reason].error
            assert failure is not None and failure.code == "adapter_error"
            assert reason in failure.message
            assert engine.checked[adapter.digest] == failure.message
        assert engine.answers["sound"].finished and engine.answers["base"].finished
        engine.send(CheckAdapter(adapters[1]))
        engine.wait_for(lambda: adapters[1].digest in engine.checked)
        assert engine.checked[adapters[1].digest] is None


def _with_nan(directory) -> AdapterRef:
    path = directory / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, path)
    return AdapterRef("nan", str(directory), adapter_digest(directory))


def test_others_go_on_while_one_is_loaded(tiny_model_dir, adapters):
    begun, proceed = threading.Event(), threading.Event()

    def slow(*arguments):
        begun.set()
        assert proceed.wait(60)
        return load_adapter(*arguments)

    with RunningEngine(config(tiny_model_dir), read_adapter=slow) as engine:
        for name in ("kept", "cancelled"):
            engine.ask(name, PROMPT, adapters[0])
        engine.ask("late", PROMPT, adapters[0], deadline=0.0)
        engine.send(CancelRequest("cancelled"))
        assert begun.wait(60)
        engine.ask("base", PROMPT)
        engine.wait("base", "late")
        assert engine.answers["late"].error.code == "deadline_exceeded"
        assert engine.stats.adapters.requests == 1
        assert not engine.answers["kept"].tokens
        proceed.set()
        (answer,) = engine.wait("kept")
        assert answer.finished
        assert not engine.answers["cancelled"].tokens


def test_unloading_waits_for_the_requests_that_use_it(tiny_model_dir, adapters):
    with RunningEngine(config(tiny_model_dir)) as engine:
        engine.ask("whole", PROMPT, adapters[0], tokens=60)
        engine.wait("whole")
        engine.ask("running", PROMPT, adapters[0], tokens=60)
        engine.wait_for(lambda: engine.answers["running"].tokens)
        engine.send(UnloadAdapter(adapters[0].digest))
        (answer,) = engine.wait("running")
        assert answer.tokens == engine.answers["whole"].tokens
        engine.ask("next", PROMPT, tokens=1)  # an idle engine reports every few seconds only
        engine.wait("next")
        engine.wait_for(lambda: engine.stats.adapters.loaded == 0)
        assert engine.stats.adapters.nbytes == 0
        engine.ask("reloaded", PROMPT, adapters[0], tokens=60)
        assert engine.wait("reloaded")[0].tokens == answer.tokens
