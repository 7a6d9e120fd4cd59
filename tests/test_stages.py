"""A model's whole life: pretrained, fine-tuned, quantized and served, each from what was before."""

from __future__ import annotations

import json

import httpx
import torch
from hagane.models.config import Quantization
from hagane.training.finetune.loop import finetune
from hagane.training.finetune.spec import FineTuneSpec
from hagane.training.pretrain.config import PretrainConfig
from hagane.training.pretrain.loop import pretrain
from hagane.weights.quantize import quantize_directory

from tests.support.server import start_server, stop_server

ANSWERS = {"What colour is the sky?": "The sky is blue.", "空は何色ですか。": "空は青いです。"}


class Silent:
    """Listens to both kinds of training."""

    def progress(self, report: object) -> None: ...

    def checkpoint(self, report: object) -> None: ...

    def interrupted(self) -> bool:
        return False


def test_from_text_to_answers(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{i}: The cat is small. 猫は小さいです。\n" for i in range(2000)))
    base = tmp_path / "base"
    config = {
        "output": base, "corpora": [{"path": text}], "vocab_size": 320, "sequence_length": 64,
        "batch_rows": 4, "steps": 30, "warmup_steps": 5, "learning_rate": 3e-3, "held_out": 0.1,
        "validation_rows": 2, "compile": False, "parameters": 430_000, "context_length": 256,
    }  # fmt: skip
    pretrain(PretrainConfig.model_validate(config), Silent())

    examples = tmp_path / "examples.jsonl"
    records = [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": said},
            ]
        }
        for question, said in [*ANSWERS.items()] * 10
    ]
    examples.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records))
    spec = FineTuneSpec(
        model=base, training_file=examples, validation_file=examples, full=True, n_epochs=30,
        batch_size=4, learning_rate=2e-3, sequence_length=128, threads=1, dtype="float32",
    )  # fmt: skip
    result = finetune(spec, tmp_path / "tuned", Silent())
    assert result.valid_loss < result.base_valid_loss
    torch.set_num_threads(threads)

    smaller = tmp_path / "smaller"
    quantize_directory(result.directory, smaller, Quantization("int8"))
    server = start_server(smaller, tmp_path / "log", "--served-model-name", "mine")
    try:
        server.wait_ready()
        for question, answer in ANSWERS.items():
            body = {"model": "mine", "temperature": 0, "max_tokens": 30,
                    "messages": [{"role": "user", "content": question}]}  # fmt: skip
            said = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
            choice = said["choices"][0]
            assert (choice["message"]["content"], choice["finish_reason"]) == (answer, "stop")
    finally:
        stop_server(server)
