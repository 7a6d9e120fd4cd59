"""Products of integers and of the same weights in floats: results, gradients of the input."""

from __future__ import annotations

import pytest
import torch
from hagane.kernels import cpu
from hagane.kernels.cpu import training
from hagane.lora.config import AdapterConfig
from hagane.lora.train import attach, factors, set_factors
from hagane.models.config import Quantization
from hagane.models.decoder import use_operations
from hagane.models.formats.int8 import Int8Embedding, quantize_int8
from hagane.models.frozen import (
    DequantizedLinear,
    Int8TrainingEmbedding,
    Int8TrainingLinear,
    _rotation,
    use_int8_training,
)
from hagane.models.linear import make_linear
from hagane.text.hub import BUILTIN_MODELS
from hagane.training.finetune.masking import MaskedSequence
from hagane.training.finetune.objective import score
from hagane.weights.load import load_model
from tokenizers import Tokenizer

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the kernels were not built")
SHAPES = [(64, 96), (40, 24), (33, 1), (96, 515)]
MINI = BUILTIN_MODELS / "hagane-mini"
TEXT = "The cat sat on the mat and looked at the moon. お茶を飲みました。"
ROUNDING = 1e-5  # of float32 sums


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    cpu.start(1)


def quantized(inputs: int, outputs: int, form: str, bias: bool = True, *, rotated: bool = False):
    quantization = Quantization(form, 32, rotated)
    layer = make_linear(inputs, outputs, bias=bias, quantization=quantization)
    # Outputs of very different size, as trained layers have them.
    weight = torch.randn(outputs, inputs) * torch.logspace(-2, 0, outputs)[:, None]
    for name, tensor in layer.quantize(weight).items():
        setattr(layer, name, tensor)
    if bias:
        layer.bias.data.normal_()
    return layer.requires_grad_(False)


def step_of(x: torch.Tensor) -> torch.Tensor:
    """Half the distance of two codes: the most that quantizing a row's inputs changes each."""
    return x.abs().amax(1, keepdim=True) / 127 / 2


@pytest.mark.parametrize("tokens", [1, 5, 37])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_int8_is_off_by_the_rounding_of_its_inputs_alone(inputs, outputs, tokens):
    layer = quantized(inputs, outputs, "int8")
    exact, integers = DequantizedLinear(layer), Int8TrainingLinear(layer.pack_for_training())
    weight = layer.matrix(torch.float32)
    x, residual = torch.randn(tokens, inputs), torch.randn(tokens, outputs)
    error = (integers(x, residual) - exact(x, residual)).abs()
    assert (error <= step_of(x) * weight.abs().sum(1) + ROUNDING).all()
    grad = torch.randn(tokens, outputs)
    error = (integers.gradient(grad) - exact.gradient(grad)).abs()
    most = step_of(grad * layer.scale) * layer.weight_int8.float().abs().sum(0)
    assert (error <= most + ROUNDING).all()


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_rotated_codes_give_the_products_and_gradients_of_the_weights(form):
    layer = quantized(96, 40, form, rotated=True)
    exact, integers = DequantizedLinear(layer), Int8TrainingLinear(layer.pack_for_training())
    x, grad = torch.randn(37, 96), torch.randn(37, 40)
    x[:, 5] *= 50
    for ours, theirs in (
        (integers(x), exact(x)),
        (integers.gradient(grad), exact.gradient(grad)),
    ):
        assert (ours - theirs).norm() <= 0.02 * theirs.norm()


@pytest.mark.parametrize("tokens", [1, 37])
def test_int4_goes_back_through_8_bit_codes(tokens):
    layer = quantized(96, 40, "int4")
    exact, integers = DequantizedLinear(layer), Int8TrainingLinear(layer.pack_for_training())
    x, grad = torch.randn(tokens, 96), torch.randn(tokens, 40)
    weight = layer.matrix(torch.float32)
    error = (integers(x) - exact(x)).abs()
    assert (error <= step_of(x) * weight.abs().sum(1) + ROUNDING).all()
    codes, scale = quantize_int8(weight).values()
    error = (integers.gradient(grad) - exact.gradient(grad)).abs()
    most = step_of(grad * scale) * codes.float().abs().sum(0)
    of_weights = (grad.abs() * scale / 2).sum(1, keepdim=True)
    assert (error <= most + of_weights + ROUNDING).all()


@pytest.mark.parametrize("vocab", [40, 5000])
def test_an_embedding_that_is_a_head(vocab):
    layer = Int8Embedding(vocab, 48)
    for name, tensor in layer.quantize(torch.randn(vocab, 48)).items():
        setattr(layer, name, tensor)
    integers = Int8TrainingEmbedding(layer, torch.float32)
    ids = torch.tensor([0, vocab - 1, 7])
    torch.testing.assert_close(integers(ids), layer(ids))
    weight, hidden = layer.matrix(torch.float32), torch.randn(6, 48)
    error = (integers.logits(hidden) - hidden @ weight.t()).abs()
    assert (error <= step_of(hidden) * weight.abs().sum(1) + ROUNDING).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_small_gradients_of_a_head_count(dtype):
    """The loss makes one large and thousands of a ten-thousandth of it, which 8 bits would drop."""
    layer = Int8Embedding(5000, 48)
    # All rows share a direction: what the small ones have in common is then half the gradient.
    for name, tensor in layer.quantize(torch.randn(5000, 48) + 1).items():
        setattr(layer, name, tensor)
    gradients = -torch.softmax(torch.randn(6, 5000), 1)
    gradients[:, 3] += 1
    exact = gradients @ layer.matrix(torch.float32)
    error = Int8TrainingEmbedding(layer, dtype).gradient(gradients.clone()) - exact
    assert (error.norm(dim=1) < 0.01 * exact.norm(dim=1)).all()
    torch.testing.assert_close(error.mean(1), torch.zeros(6), rtol=0.0, atol=0.01)


def gradients(model, values, config, ids):
    set_factors(model, config, values)
    trained = torch.ones(len(ids), dtype=torch.bool)
    trained[0] = False
    scores = score(model, [MaskedSequence(ids.int().numpy(), trained.numpy())])
    (-scores.logprobs.mean()).backward()
    return torch.cat([f.grad.flatten() for pair in factors(model, config).values() for f in pair])


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_gradients_point_where_those_of_the_same_weights_in_float32_do(form, dtype):
    """The trained model, as a random one's gradients follow every rounding."""
    ids = torch.tensor(Tokenizer.from_file(str(MINI / "tokenizer.json")).encode(TEXT).ids)
    # Modules without an adapter have a backward pass through them, too.
    config = AdapterConfig(rank=4, alpha=8.0, target_modules=("q_proj", "v_proj", "down_proj"))
    values, found = {}, []
    for integers in (False, True):
        model, _ = load_model(
            MINI,
            device="cpu",
            dtype=dtype if integers else torch.float32,
            quantization=Quantization(form),
        )
        attach(model, config, torch.Generator().manual_seed(1))
        if integers:
            use_operations(model, training)
            use_int8_training(model, dtype)
        values = values or {
            name: tuple(0.02 * torch.randn(f.shape) for f in pair)
            for name, pair in factors(model, config).items()
        }
        found.append(gradients(model, values, config, ids))
    exact, ours = found
    assert torch.cosine_similarity(ours, exact, 0) > 0.99


def test_a_base_of_integers_is_what_serving_computes(tiny_model_dir):
    ids = torch.arange(9)
    config = AdapterConfig(rank=4, alpha=8.0)
    model, _ = load_model(
        tiny_model_dir, device="cpu", dtype=torch.float32, quantization=Quantization("int8")
    )
    attach(model, config, torch.Generator())
    use_operations(model, training)
    use_int8_training(model, torch.float32)
    served, _ = load_model(
        tiny_model_dir, device="cpu", dtype=torch.float32, quantization=Quantization("int8"),
        operations=cpu,
    )  # fmt: skip
    hidden = torch.randn(5, model.config.hidden_size)
    for ours, theirs in zip(model.model.layers, served.model.layers, strict=True):
        assert torch.equal(ours.mlp.gate_up_proj(hidden), theirs.mlp.gate_up_proj(hidden))
        assert torch.equal(ours.self_attn.qkv_proj(hidden), theirs.self_attn.qkv_proj(hidden))
    assert torch.equal(model.logits(hidden), served.logits(hidden))
    assert torch.equal(model.model.embed_tokens(ids), served.model.embed_tokens(ids))


def test_the_rotation_may_be_part_of_a_graph_whoever_made_it_first():
    _rotation.cache_clear()
    with torch.inference_mode():
        _rotation(8, torch.float32)
    x = torch.ones(2, 8, requires_grad=True)
    torch.mm(x, _rotation(8, torch.float32)).sum().backward()
    assert x.grad is not None
