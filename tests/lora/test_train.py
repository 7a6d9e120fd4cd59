"""LoRA layers and PEFT's: the same gradients, files that each other reads, the same merge."""

from __future__ import annotations

import pytest
import torch
from hagane.kernels import cpu, reference
from hagane.kernels.cpu import training
from hagane.lora.config import TARGETS, AdapterConfig
from hagane.lora.files import load_adapter, save_adapter
from hagane.lora.merge import merge_directory
from hagane.lora.train import attach, disabled, factors, set_factors
from hagane.models.attention import PackedSequences
from hagane.models.config import Quantization
from hagane.system.errors import ConfigurationError
from hagane.training.finetune.masking import MaskedSequence
from hagane.training.finetune.model import use_operations
from hagane.training.finetune.objective import score
from hagane.weights.load import load_model
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

IDS = (torch.arange(24) * 7 + 5) % 300
CONFIG = AdapterConfig(rank=4, alpha=8.0)
DORA = AdapterConfig(rank=4, alpha=8.0, dora=True)


def ours(directory, config=CONFIG, quantization=None, dtype=torch.float32):
    """Our model below an adapter whose factors are all random."""
    model, _ = load_model(directory, device="cpu", dtype=dtype, quantization=quantization)
    attach(model, config, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    values = {
        name: tuple(
            f + 0.1 * torch.randn(f.shape, generator=generator)
            if f.dim() == 1
            else 0.1 * torch.randn(f.shape, generator=generator)
            for f in tensors
        )
        for name, tensors in factors(model, config).items()
    }
    set_factors(model, config, values)
    return model


def logits_of(model, ids=IDS):
    return model.logits(model(ids, PackedSequences([len(ids)])))


@pytest.fixture(params=[CONFIG, DORA], ids=["lora", "dora"])
def saved(request, tiny_model_dir, tmp_path):
    """Our adapter, its configuration, and PEFT's files of it."""
    model = ours(tiny_model_dir, request.param)
    save_adapter(tmp_path / "adapter", request.param, factors(model, request.param))
    return model, request.param, tmp_path / "adapter"


@pytest.mark.parametrize("operations", [reference, training], ids=["reference", "training"])
def test_gradients_equal_pefts(tiny_model_dir, saved, operations):
    if operations is training and not cpu.available():
        pytest.skip("the kernels were not built")
    model, config, directory = saved
    use_operations(model, operations)
    trained = torch.ones(len(IDS), dtype=torch.bool)
    trained[0] = False
    scores = score(model, [MaskedSequence(IDS.int().numpy(), trained.numpy())])
    (-scores.logprobs.mean()).backward()
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    theirs = PeftModel.from_pretrained(base, directory, is_trainable=True)
    theirs(input_ids=IDS[None], labels=IDS[None]).loss.backward()
    wanted = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    mine = factors(model, config)
    kinds = ("A", "B", "magnitude_vector")[: 3 if config.dora else 2]
    assert len(wanted) == len(kinds) * len(mine) == len(kinds) * 2 * len(TARGETS)
    for name, tensors in mine.items():
        for kind, factor in zip(kinds, tensors, strict=True):
            grad = wanted[f"base_model.model.model.{name}.lora_{kind}.default.weight"]
            error = (factor.grad - grad).norm() / grad.norm()
            assert error < 1e-4, f"{name} {kind}: {error}"


def test_an_adapter_trained_here_loads_in_peft(tiny_model_dir, saved):
    model, _, directory = saved
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    theirs = PeftModel.from_pretrained(base, directory)
    with torch.no_grad():
        wanted = theirs(input_ids=IDS[None]).logits[0]
        torch.testing.assert_close(logits_of(model), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("rslora", "dora"), [(False, False), (True, False), (True, True)])
def test_an_adapter_of_pefts_loads_and_merges_here(tiny_model_dir, tmp_path, rslora, dora):
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj", "down_proj"],
        use_rslora=rslora,
        use_dora=dora,
    )
    theirs = get_peft_model(base, config)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
        if "magnitude" in name:
            parameter.data.mul_(1 + 0.3 * torch.randn(parameter.shape))
    theirs.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        wanted = theirs(input_ids=IDS[None]).logits[0]
        model, _ = load_model(tiny_model_dir, device="cpu", dtype=torch.float32, quantization=None)
        adapter = load_adapter(tmp_path / "adapter", model.config)
        attach(model, adapter.config, torch.Generator())
        values = {name: change.tensors() for name, change in adapter.changes.items()}
        set_factors(model, adapter.config, values)
        torch.testing.assert_close(logits_of(model), wanted, atol=1e-4, rtol=0)
        assert merge_directory(tiny_model_dir, tmp_path / "adapter", tmp_path / "merged") == 6
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        logits = merged(input_ids=IDS[None]).logits[0]
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    with pytest.raises(ConfigurationError, match="not empty"):
        merge_directory(tiny_model_dir, tmp_path / "adapter", tmp_path / "merged")


def test_magnitudes_begin_as_the_lengths_of_rows(tiny_model_dir):
    """So that nothing changes before the first step, on a quantized base either."""
    for quantization in (None, Quantization("int8")):
        model, base = (
            load_model(
                tiny_model_dir, device="cpu", dtype=torch.float32, quantization=quantization
            )[0]
            for _ in range(2)
        )
        attach(model, DORA, torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(logits_of(model), logits_of(base), atol=2e-3, rtol=0)


@pytest.mark.parametrize("config", [CONFIG, DORA], ids=["lora", "dora"])
@pytest.mark.parametrize("name", ["none", "int8", "int4", "fp8"])
def test_switched_off_it_is_the_base(tiny_model_dir, name, config):
    quantization = None if name == "none" else Quantization(name)
    model = ours(tiny_model_dir, config, quantization=quantization)
    base, _ = load_model(
        tiny_model_dir, device="cpu", dtype=torch.float32, quantization=quantization
    )
    with torch.no_grad():
        adapted = logits_of(model)
        with disabled(model):
            torch.testing.assert_close(logits_of(model), logits_of(base), atol=2e-3, rtol=0)
        assert (logits_of(model) == adapted).all()
        assert (adapted - logits_of(base)).abs().max() > 0.1


@pytest.mark.parametrize("operations", [reference, training], ids=["reference", "training"])
def test_sequences_side_by_side_do_not_see_each_other(tiny_model_dir, operations):
    if operations is training and not cpu.available():
        pytest.skip("the kernels were not built")
    model = ours(tiny_model_dir)
    use_operations(model, operations)
    parts = [IDS[:5], IDS[5:6], IDS[6:20]]
    with torch.no_grad():
        context = PackedSequences([len(p) for p in parts], operations=operations)
        packed = model(torch.cat(parts), context)
        alone = [model(p, PackedSequences([len(p)], operations=operations)) for p in parts]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-5, rtol=1e-5)
