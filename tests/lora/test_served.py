"""Adapters in training with the values of serving: its bits, and the gradients of training."""

from __future__ import annotations

import pytest
import torch
from hagane.kernels import cpu
from hagane.kernels.cpu import training
from hagane.lora.banks import AdapterBanks
from hagane.lora.config import AdapterConfig
from hagane.lora.files import load_adapter, save_adapter
from hagane.lora.train import attach, disabled, factors, place_factors, use_served_values
from hagane.models.config import Quantization
from hagane.models.decoder import use_operations
from hagane.models.frozen import use_int8_training
from hagane.models.spec import linear_shapes
from hagane.training.finetune.masking import MaskedSequence
from hagane.training.finetune.objective import score

from tests.models.test_decoder import PagedRun, load, random_model, random_tokens

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the kernels were not built")
# Norms elsewhere, with offsets and biases; caps and windows; rotations of neighbours, of half a
# head and of none; centred keys; multipliers; another activation; a head of its own; latents.
NAMES = ("llama3", "mistral-sliding", "qwen2", "qwen3", "gemma2", "olmo2", "phi4", "glm4",
         "granite", "starcoder2", "smollm3", "stablelm-parallel", "deepseek-v2")  # fmt: skip
FORMS = [
    (None, torch.float32),
    (None, torch.bfloat16),
    (Quantization("int8", rotated=True), torch.bfloat16),
    (Quantization("int4", 32), torch.float32),
]
LENGTHS = (37, 1 + 16, 70)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    cpu.start(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=NAMES)
def directory(request, tmp_path_factory):
    made = tmp_path_factory.mktemp(request.param)
    random_model(request.param, made)
    return made


def adapted(directory, quantization, dtype, *, served: bool):
    """The model in training below an adapter whose factors are all random."""
    model = load(directory, None, quantization, dtype)
    names = tuple(dict.fromkeys(path.rpartition(".")[2] for path in linear_shapes(model.config)))
    config = AdapterConfig(rank=3, alpha=6.0, target_modules=names)
    generator = torch.Generator().manual_seed(1)
    attach(model, config, generator)
    for _, b in factors(model, config).values():
        torch.nn.init.normal_(b, 0.0, 0.1, generator=generator)
    use_operations(model, training)
    use_int8_training(model, dtype)
    if served:
        use_served_values(model, load(directory, cpu, quantization, dtype))
        place_factors(model)
    return model, config


def sequences():
    for n, length in enumerate(LENGTHS):
        trained = torch.arange(length) > 0
        yield MaskedSequence(torch.tensor(random_tokens(n, length)).int().numpy(), trained.numpy())


def answered(model, dtype, adapter: int | None) -> torch.Tensor:
    """What serving gives to each token after those before it."""
    found = []
    for n, length in enumerate(LENGTHS):
        tokens = random_tokens(n, length)
        (logits,) = PagedRun(model, dtype=dtype, adapter=adapter).step([(n, tokens, 0, length)])
        wanted = torch.tensor(tokens[1:])[:, None]
        found.append(logits.log_softmax(dim=1)[:-1].gather(1, wanted)[:, 0])
    return torch.cat(found)


@pytest.mark.parametrize(("quantization", "dtype"), FORMS)
def test_log_probabilities_have_the_bits_of_serving(directory, tmp_path, quantization, dtype):
    model, config = adapted(directory, quantization, dtype, served=True)
    save_adapter(tmp_path, config, factors(model, config))
    serving = load(directory, cpu, quantization, dtype)
    banks = AdapterBanks(serving, dtype, torch.device("cpu"))
    banks.place(0, banks.pack(load_adapter(tmp_path, serving.config)))
    own = score(model, list(sequences())).logprobs.detach()
    assert torch.equal(own, answered(serving, dtype, 0))
    with torch.no_grad(), disabled(model):
        base = score(model, list(sequences())).logprobs
    assert torch.equal(base, answered(serving, dtype, None))
    assert (own - base).abs().max() > 0.1


def gradients(model, config) -> torch.Tensor:
    score(model, list(sequences())).logprobs.sum().backward()
    return torch.cat([f.grad.flatten() for pair in factors(model, config).values() for f in pair])


def test_gradients_are_those_of_training(directory):
    ours, exact = (
        gradients(*adapted(directory, None, torch.float32, served=served))
        for served in (True, False)
    )
    assert (ours - exact).norm() < 1e-4 * exact.norm()


def test_factors_count_once_they_are_placed(tiny_model_dir):
    model, config = adapted(tiny_model_dir, None, torch.float32, served=True)
    before = score(model, list(sequences())).logprobs.detach()
    for _, b in factors(model, config).values():
        b.data.neg_()
    assert torch.equal(score(model, list(sequences())).logprobs, before)
    place_factors(model)
    assert (score(model, list(sequences())).logprobs - before).abs().max() > 0.1
