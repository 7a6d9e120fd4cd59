"""Run TRL's GRPO on the tasks of `reinforcement.py`.

Usage: python benchmarks/peer_trl_grpo.py PLAN.json   (prints one JSON object)
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import mean

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

STARTED = time.monotonic()
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Answers in one backward pass; all of a step are generated together.
PART = 16


class Rewards(TrainerCallback):
    """Grades, and keeps the reward of each step and when it ended, in seconds."""

    __name__ = "sum"

    def __init__(self, source: str) -> None:
        scope: dict = {}
        exec(source, scope)
        self.grade, self.latest, self.steps = scope["grade"], 0.0, []

    def __call__(self, completions: list, item: list[str], **_: object) -> list[float]:
        rewards = [
            self.grade({"output_text": turns[-1]["content"]}, json.loads(own))
            for turns, own in zip(completions, item, strict=True)
        ]
        self.latest = mean(rewards)
        return rewards

    def on_step_end(self, *_: object, **__: object) -> None:
        self.steps.append((time.monotonic() - STARTED, self.latest))
        print(f"TRL step {len(self.steps)}: reward {self.latest:.2f}", file=sys.stderr)


def measure(plan: dict) -> dict:
    torch.set_num_threads(plan["threads"])
    lines = (Path(plan["folder"]) / "train.jsonl").read_text().splitlines()
    data = [{"prompt": json.loads(line)["messages"], "item": line} for line in lines]
    rewards = Rewards(plan["grader"])
    model = AutoModelForCausalLM.from_pretrained(plan["model"], dtype=torch.bfloat16)
    steps = plan["trl_steps"] or plan["steps"]
    arguments = GRPOConfig(
        output_dir=str(Path(plan["folder"]) / "trl"), max_steps=steps,
        per_device_train_batch_size=PART,
        gradient_accumulation_steps=plan["batch"] * plan["group"] // PART,
        num_generations=plan["group"], max_completion_length=plan["tokens"], temperature=1.0,
        beta=0.0, scale_rewards="none", loss_type="dapo", epsilon=0.2, epsilon_high=0.28,
        learning_rate=plan["rate"], lr_scheduler_type="cosine", max_grad_norm=1.0,
        warmup_steps=min(max(plan["steps"] // 20, 1), 10), bf16=True, use_cpu=True,
        gradient_checkpointing=False, shuffle_dataset=False, save_strategy="no", report_to=[],
        logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    config = LoraConfig(
        r=plan["rank"], lora_alpha=2 * plan["rank"], target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    trainer = GRPOTrainer(
        model=model, reward_funcs=rewards, args=arguments,
        train_dataset=Dataset.from_list(data), peft_config=config, callbacks=[rewards],
        processing_class=AutoTokenizer.from_pretrained(plan["model"]),
    )  # fmt: skip
    trainer.train()
    return {"steps": rewards.steps}


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(Path(sys.argv[1]).read_text()))))
