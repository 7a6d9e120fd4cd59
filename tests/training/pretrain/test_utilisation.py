"""Model-FLOPs utilisation."""

from __future__ import annotations

import pytest
import torch
from hagane.models.decoder import Transformer
from hagane.models.families import read_config
from hagane.training.pretrain.head_loss import TorchLoss
from hagane.training.pretrain.utilisation import Utilisation, flops_per_token
from torch.utils.flop_counter import FlopCounterMode


def model(tied: bool) -> Transformer:
    made = Transformer(
        read_config(
            {"architectures": ["LlamaForCausalLM"], "vocab_size": 96, "hidden_size": 64,
             "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 64, "eos_token_id": 0,
             "tie_word_embeddings": tied}
        )
    )  # fmt: skip
    made.init_weights(torch.Generator().manual_seed(0))
    return made


@pytest.mark.parametrize("tied", [True, False])
def test_a_token_costs_what_torch_counts(tied):
    rows = torch.randint(96, (2, 33))
    made = model(tied)
    with FlopCounterMode(display=False) as counter:
        TorchLoss(torch.float32).mean(made, rows).backward()
    # Products alone: torch counts attention's backward pass with the forward pass computed again.
    counted = counter.get_flop_counts()["Global"]
    products = sum(n for name, n in counted.items() if str(name).startswith("aten.mm"))
    attention = 12 * 2 * 64 * 32
    assert products / 64 == flops_per_token(made, 32) - attention


def test_utilisation_of_known_gpus_alone():
    made = model(tied=True)
    assert Utilisation.of(made, 32, None, 1) is None
    for name, peak in (("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12)):
        used = Utilisation.of(made, 32, name, 2)
        assert used.at(1000) == pytest.approx(1000 * flops_per_token(made, 32) / (2 * peak))
    assert Utilisation.of(made, 32, "Unheard of", 1) is None
