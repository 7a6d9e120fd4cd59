"""Divergence of quantized copies from their model, by text: the weights' part of what they lose.

Usage: python benchmarks/divergence.py MODEL NAME=TEXT... --copies DIRECTORY,DIRECTORY [--windows N]

MODEL is a directory of unquantized weights, each copy one that `hagane quantize` wrote. Texts are
those of `quality.py`. The mean divergence of all next-token distributions has an error some ten
times smaller than the difference of two losses on the same tokens, so that a few windows tell two
ways of rounding apart. Inputs and KV cache stay in bf16 here: `quality.py` has the total.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from hagane.kernels import cpu
from hagane.models.attention import PackedSequences
from hagane.models.decoder import Transformer
from hagane.models.formats.dense import Dense
from hagane.models.formats.layer import QuantizedLinear
from hagane.weights.load import load_model
from hagane.weights.sources.config import load_config
from quality import Text, read_text
from torch import Tensor


def load(directory: Path) -> Transformer:
    """The model in bf16, quantized matrices dequantized once."""
    form = load_config(directory).quantization
    model, _ = load_model(directory, device="cpu", dtype=torch.bfloat16, quantization=form)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, QuantizedLinear):
                weight = child.matrix(torch.float32).bfloat16()
                with torch.device("meta"):
                    dense = Dense(weight.shape[1], weight.shape[0], bias=False)
                dense.weight, dense.bias = torch.nn.Parameter(weight), child.bias
                setattr(parent, name, dense)
    return model


@torch.no_grad()
def logprobs(model: Transformer, texts: list[Text]) -> Iterator[Tensor]:
    """Float32 [window, vocab] of each text's windows, one after the other."""
    for text in texts:
        for window in text.windows:
            hidden = model(torch.tensor(window), PackedSequences([len(window)]))
            yield model.logits(hidden).log_softmax(-1)


def row(model: Transformer, texts: list[Text], whole: list[Tensor]) -> Iterator[str]:
    """Divergence in percent of the loss, by text and of all."""
    found = logprobs(model, texts)
    exact = iter(whole)
    divergences, losses = [], []
    for text in texts:
        divergence = loss = 0.0
        for window in text.windows:
            base = next(exact).float()[:-1]
            divergence += float((base.exp() * (base - next(found)[:-1])).sum())
            loss -= float(base.gather(1, torch.tensor(window[1:])[:, None]).sum())
        divergences.append(divergence)
        losses.append(loss)
        yield f"{divergence / loss:.2%}"
    yield f"{sum(divergences) / sum(losses):.2%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", nargs="+", metavar="NAME=TEXT")
    parser.add_argument("--copies", required=True, help="directories, comma-separated")
    parser.add_argument("--windows", type=int, default=2, help="of every text")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    options = parser.parse_args()
    if cpu.available():
        cpu.start()
    texts = [read_text(options.model, t, options.windows, options.length) for t in options.texts]
    whole = [found.half() for found in logprobs(load(options.model), texts)]
    print("| copy | MB | " + " | ".join(text.name for text in texts) + " | all |")
    print("|---|---|" + "---|" * (len(texts) + 1))
    for copy in map(Path, options.copies.split(",")):
        size = sum(file.stat().st_size for file in copy.glob("*.safetensors"))
        cells = " | ".join(row(load(copy), texts, whole))
        print(f"| {copy.name} | {size / 1e6:.0f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
