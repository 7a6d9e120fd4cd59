"""A model's loss and gradients through Hagane's kernels and through torch's operators."""

from __future__ import annotations

import pytest
import torch
from hagane.kernels import cpu
from hagane.kernels.cpu.pretraining import Pretraining
from hagane.models.decoder import Transformer, use_operations
from hagane.models.families import read_config
from hagane.training.pretrain.head_loss import CpuLoss, TorchLoss

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the kernels were not built")
SHAPE = {
    "vocab_size": 200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "eos_token_id": 0,
}  # fmt: skip
KINDS = {
    "llama": {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": False},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True},
    "window": {"architectures": ["MistralForCausalLM"], "sliding_window": 20},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_native_kernels_compute_what_torch_does(kind):
    model = Transformer(read_config(SHAPE | KINDS[kind]))
    model.init_weights(torch.Generator().manual_seed(0))
    rows = torch.randint(200, (3, 141), generator=torch.Generator().manual_seed(1))
    found = {}
    for name, dtype in (("torch", torch.float32), ("float32", torch.float32),
                        ("bfloat16", torch.bfloat16)):  # fmt: skip
        loss = TorchLoss(dtype)
        if name != "torch":
            operations = Pretraining(dtype)
            cpu.start(1)
            use_operations(model, operations)
            loss = CpuLoss(operations)
        model.zero_grad()
        mean = loss.mean(model, rows)
        mean.backward()
        with torch.no_grad():
            each, logits = loss.each(model, rows), loss.next_logits(model, rows[0])
        gradients = [parameter.grad for parameter in model.parameters()]
        found[name] = [mean.detach(), each, logits, *gradients]
    for name, error in (("float32", 1e-5), ("bfloat16", 0.03)):
        for ours, wanted in zip(found[name], found["torch"], strict=True):
            assert (ours - wanted).norm() <= error * wanted.norm()
