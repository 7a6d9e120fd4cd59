"""Rows that adapters replace, as they are served; steps with them are tested with the engine."""

from __future__ import annotations

import pytest
import torch
from hagane.kernels import cpu, reference
from hagane.lora.config import EMBEDDING, HEAD, AdapterConfig
from hagane.lora.files import Adapter, TokenRows
from hagane.lora.token_bank import TokenBank
from hagane.weights.load import load_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operations", [reference, cpu], ids=["reference", "native"])
def test_the_size_is_that_of_the_packed_rows(tiny_model_dir, operations, dtype):
    if operations is cpu and not cpu.available():
        pytest.skip("needs the native kernels")
    model, _ = load_model(tiny_model_dir, device="cpu", dtype=torch.float32, quantization=None)
    bank = TokenBank(model, dtype, torch.device("cpu"), operations)
    features = model.config.hidden_size - 3
    tokens = {
        name: TokenRows(tuple(range(count)), torch.ones(count, features))
        for name, count in ((EMBEDDING, 3), (HEAD, 17))
    }
    adapter = Adapter(AdapterConfig(rank=4, alpha=8.0), {}, "d", tokens)
    packed = bank.pack(adapter)
    taken = 0
    for table in packed.values():
        layer = table.layer
        values = layer.weight.nbytes if hasattr(layer.weight, "nbytes") else 0
        taken += table.ids.nbytes + values
    assert bank.size(adapter) == taken
    assert taken >= dtype.itemsize * 20 * features
