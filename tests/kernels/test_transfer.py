"""Many tensors in one copy come out as they went in."""

from __future__ import annotations

import torch
from hagane.kernels.transfer import Fetch, pack, send, unpack


def test_parts_keep_values_shapes_and_alignment():
    tensors = [
        torch.arange(3, dtype=torch.int64),
        torch.rand(2, 5, dtype=torch.float64),
        torch.zeros(0, dtype=torch.int32),
        torch.arange(7, dtype=torch.int8).view(7, 1),
        torch.tensor(2.5),
    ]
    packed = pack(tensors, pin_memory=False)
    parts = unpack(packed.clone(), tensors)
    for part, tensor in zip(parts, tensors, strict=True):
        assert (part.dtype, part.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(part, tensor)
        assert (part.storage_offset() * part.element_size()) % 16 == 0


def test_on_the_host_nothing_is_copied():
    tensor = torch.rand(4)
    assert send([tensor], torch.device("cpu"))[0] is tensor
    assert Fetch(tensor).wait()[0] is tensor
