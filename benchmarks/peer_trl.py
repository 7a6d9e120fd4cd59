"""Compare DPO's loss with TRL's, on one batch and one adapter.

Usage: python benchmarks/peer_trl.py   (in an environment with trl, peft and Hagane; prints both)
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from hagane.lora.config import TARGETS, AdapterConfig
from hagane.lora.files import save_adapter
from hagane.lora.train import attach, factors
from hagane.text.hub import resolve_model
from hagane.training.finetune.examples import read
from hagane.training.finetune.preference import dpo_loss
from hagane.training.finetune.spec import FineTuneSpec
from hagane.weights.load import load_model
from hagane.weights.sources.config import load_config
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

BETA = 0.3
PAIRS = [
    {"prompt": "The cat sat on", "chosen": " the mat.", "rejected": " a dog, and slept."},
    {"prompt": "Once upon a time", "chosen": " there was a king.", "rejected": " no."},
]


def main() -> None:
    directory = resolve_model("hagane-mini")
    model, _ = load_model(directory, device="cpu", dtype=torch.float32, quantization=None)
    config = AdapterConfig(rank=4, alpha=8.0)
    attach(model, config, torch.Generator().manual_seed(0))
    for _, b in factors(model, config).values():
        torch.nn.init.normal_(b, 0.0, 0.05)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
        save_adapter(folder / "adapter", config, factors(model, config))
        spec = FineTuneSpec(model=directory, training_file=folder / "pairs.jsonl", method="dpo")
        _, examples = read(spec.training_file, spec, load_config(directory))
        ours = dpo_loss(model, examples, BETA).total.item() / len(examples)
        theirs = trl_loss(directory, folder)
    print(f"Hagane {ours:.6f}, TRL {theirs:.6f}, difference {abs(ours - theirs):.1e}")


def trl_loss(directory: Path, folder: Path) -> float:
    base = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    arguments = DPOConfig(
        output_dir=str(folder / "trl"), beta=BETA, per_device_train_batch_size=len(PAIRS),
        use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=base,
        args=arguments,
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=AutoTokenizer.from_pretrained(directory),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=list(TARGETS)),
    )
    # Only now: the reference is what the model was before, as a job's is.
    set_peft_model_state_dict(
        trainer.model, load_file(folder / "adapter" / "adapter_model.safetensors")
    )
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, batch))


if __name__ == "__main__":
    main()
