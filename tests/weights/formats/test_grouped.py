"""GGUF's block formats served with their own bits, against their dequantized values."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hagane.kernels import cpu
from hagane.system.errors import ModelError
from hagane.weights.formats.grouped import common_form, pack
from hagane.weights.load import load_model
from hagane.weights.sources.gguf.file import GGUFModel
from hagane.weights.sources.gguf.quantized_blocks import FORMS
from hagane.weights.sources.gguf.source import GGUFRows

from tests.support.gguf import dequantized, write_gguf

pytestmark = pytest.mark.skipif(not cpu.available(), reason="kernels not built")
INPUTS = 256
# Where the float16 scales of a block are.
SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q4_1": (0, 2), "Q5_1": (0, 2)}
SCALES |= {"Q4_K": (0, 2), "Q5_K": (0, 2)}


def write(path, kinds: dict[str, tuple[str, int]]) -> dict[str, GGUFRows]:
    """A file of random blocks with moderate scales: by tensor its type and rows."""
    generator = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    for name, (kind, rows) in kinds.items():
        stored = gguf.GGMLQuantizationType[kind]
        weights, size = gguf.GGML_QUANT_SIZES[stored]
        blocks = generator.integers(0, 256, (rows, INPUTS // weights, size), dtype=np.uint8)
        if kind == "MXFP4":
            blocks[:, :, 0] = generator.integers(110, 128, blocks.shape[:2])  # exponents
            writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=stored)
            continue
        for at in SCALES.get(kind, (0,)):
            scale = generator.uniform(0.001, 0.1, blocks.shape[:2]).astype(np.float16)
            blocks[:, :, at : at + 2] = scale[:, :, None].view(np.uint8)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: GGUFRows(*found) for name, found in GGUFModel(path).tensors.items()}


def weights_of(packed: cpu.PackedWeight) -> torch.Tensor:
    """The matrix [out, in] that the kernels multiply by: inputs of a single 1 are exact."""
    return cpu.linear(torch.eye(packed.in_features), packed, torch.float32).T


def dequantize(rows: GGUFRows) -> torch.Tensor:
    return torch.cat([block.float() for block in rows.split(64)])


@pytest.mark.parametrize("kind", FORMS)
def test_weights_are_the_blocks(tmp_path, kind):
    rows = write(tmp_path / "x.gguf", {"a": (kind, 37)})["a"]
    form = common_form([rows])
    assert form == FORMS[kind]
    packed = pack(tmp_path / "x.gguf", [("a", rows)], form, None)
    expected = dequantize(rows)
    # Scales of types with large blocks are products, rounded to float16.
    rounded = kind.endswith(("K", "XS"))
    largest = expected.abs().max()
    torch.testing.assert_close(
        weights_of(packed), expected, rtol=0, atol=float(largest) * (2e-3 if rounded else 1e-6)
    )


def test_parts_of_several_types_share_a_form(tmp_path):
    kinds = {"q": ("Q4_K", 40), "k": ("Q6_K", 24), "v": ("Q5_0", 7)}
    rows = write(tmp_path / "x.gguf", kinds)
    form = common_form(list(rows.values()))
    assert form == cpu.GroupedForm(6, 16, 0, True)
    packed = pack(tmp_path / "x.gguf", list(rows.items()), form, None)
    expected = torch.cat([dequantize(part) for part in rows.values()])
    for start, stop in ((0, 40), (40, 64), (64, 71)):
        largest = float(expected[start:stop].abs().max())
        torch.testing.assert_close(
            weights_of(packed)[start:stop], expected[start:stop], rtol=0, atol=2e-3 * largest
        )


def test_scales_that_are_no_numbers_are_refused(tmp_path):
    path = tmp_path / "x.gguf"
    rows = write(path, {"a": ("Q8_0", 40)})["a"]
    data = bytearray(path.read_bytes())
    at = rows.info.start + 33 * rows.info.size // 40
    data[at : at + 2] = np.float16("nan").tobytes()
    path.write_bytes(data)
    damaged = GGUFRows(*GGUFModel(path).tensors["a"])
    with pytest.raises(ModelError, match="tensor a holds NaN or an infinity in row 33"):
        pack(path, [("a", damaged)], FORMS["Q8_0"], None)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1"])
def test_a_model_is_served_with_the_bits_of_its_file(tiny_model_dir, tmp_path, kind):
    path = write_gguf(tiny_model_dir, tmp_path / "tiny.gguf", kind)
    options = {"device": "cpu", "dtype": torch.bfloat16, "quantization": None}
    model, report = load_model(path, operations=cpu, **options)
    assert report.bits_per_weight < FORMS[kind].bits + 1.5
    expected = dequantized(tiny_model_dir, kind)
    down = weights_of(model.model.layers[0].mlp.down_proj.weight)
    torch.testing.assert_close(
        down, expected["model.layers.0.mlp.down_proj.weight"], rtol=0, atol=1e-6
    )
    ids = torch.tensor([1, 5, 9])
    torch.testing.assert_close(
        model.model.embed_tokens(ids), expected["model.embed_tokens.weight"][ids].bfloat16()
    )
