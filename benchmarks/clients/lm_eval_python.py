"""lm-evaluation-harness: log-likelihoods of text completions, and generation by chat."""

import json
import os
import tempfile
from pathlib import Path

import harness
import lm_eval
from lm_eval.tasks import TaskManager

TASK = """\
task: one
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: {kind}
doc_to_text: question
doc_to_target: answer
doc_to_choice: [sunny, rainy]
metric_list: [{{metric: {metric}}}]
generation_kwargs: {{until: ["\\n"], max_gen_toks: 16}}
"""


def evaluate(kind: str, metric: str, model: str, path: str, **options: object) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data.jsonl")
        data.write_text(json.dumps({"question": harness.QUESTION, "answer": "sunny"}) + "\n")
        text = TASK.format(path=data, kind=kind, metric=metric)
        if kind != "multiple_choice":
            text = text.replace("doc_to_choice: [sunny, rainy]\n", "")
        Path(folder, "one.yaml").write_text(text)
        tasks = TaskManager(include_path=folder)
        arguments = {"model": harness.MODEL, "base_url": f"{harness.URL}/v1/{path}"}
        arguments |= {"tokenizer": os.environ["HAGANE_CLIENT_TOKENIZER"], **options}
        return lm_eval.simple_evaluate(
            model, model_args=arguments, tasks=["one"], task_manager=tasks, bootstrap_iters=0,
            apply_chat_template=path != "completions", log_samples=True,
        )  # fmt: skip


def chat() -> str:
    evaluate("multiple_choice", "acc", "local-completions", "completions")
    found = evaluate("generate_until", "exact_match", "local-chat-completions", "chat/completions")
    return found["samples"]["one"][0]["resps"][0][0]


harness.run(["lm-eval"], chat=chat)
