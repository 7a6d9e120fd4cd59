"""`hagane pretrain`'s own step for benchmarks/pretrain.py: reads counts, writes seconds."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from hagane.models.decoder import Transformer
from hagane.models.families import read_config
from hagane.training.pretrain.config import PretrainConfig
from hagane.training.pretrain.model import PretrainModel
from hagane.training.pretrain.shards import PackedRows
from pretrain import LENGTH, ROWS, STEPS, VOCABULARY


def main(tokens: Path) -> None:
    config = PretrainConfig.model_validate(
        {"output": "unused", "corpora": [{"path": "unused"}], "steps": STEPS, "batch_rows": ROWS,
         "sequence_length": LENGTH, "dtype": "bfloat16", "parameters": "14M"}
    )  # fmt: skip
    shape = {
        "architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": 384,
        "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6,
        "num_key_value_heads": 6, "max_position_embeddings": LENGTH, "tie_word_embeddings": True,
        "eos_token_id": 0,
    }  # fmt: skip
    model = Transformer(read_config(shape))
    model.init_weights(torch.Generator().manual_seed(0))
    trained = PretrainModel.of(model, config)
    rows = PackedRows(tokens, LENGTH, seed=0)
    step = 0
    for line in sys.stdin:
        begin = time.monotonic()
        for _ in range(int(line)):
            trained.step(rows.batch(step, ROWS), step)
            step += 1
        print("seconds", time.monotonic() - begin, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
