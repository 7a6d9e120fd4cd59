"""Compare `hagane eval` with lm-evaluation-harness over HTTP, on the same text and questions.

Usage: python benchmarks/lm_eval_agreement.py HARNESS [--model NAME] [--count N] [--json FILE]

HARNESS is the interpreter of an environment with `lm-eval[api]` and torch. It asks a server that is
started here (`local-completions`: token ids, `echo` and `logprobs`). The questions are made from
the recipe of the built-in model: facts with wrong answers from other facts, small sums, last words
and held-out text, written to files that both read.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from hagane.text.hub import resolve_model

ROOT = Path(__file__).resolve().parents[1]
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: {kind}
"""
CHOICE = """\
doc_to_text: "{{context}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WORD = """\
doc_to_text: "{{text.rsplit(' ', 1)[0]}}"
doc_to_target: "{{' ' + text.rsplit(' ', 1)[1]}}"
target_delimiter: ""
metric_list: [{metric: acc}, {metric: perplexity}]
"""
ROLLING = """\
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
"""


def questions(count: int) -> list[dict]:
    """Facts and sums with four choices each, English and Japanese in turn."""
    rng = random.Random(0)
    facts = []
    for language in ("en", "ja"):
        path = ROOT / "recipe" / "data" / f"exchanges-{language}.jsonl"
        facts.append([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
    found = []
    for number in range(count):
        pool = facts[number % 2]
        if number % 3 == 0:
            a, b = rng.randint(0, 10), rng.randint(0, 10)
            context, right = f"{a} + {b} =", a + b
            choices = [str(right), *map(str, rng.sample([n for n in range(21) if n != right], 3))]
        else:
            chosen = rng.sample(pool, 4)
            context, choices = rng.choice(chosen[0]["questions"]), [c["answer"] for c in chosen]
        answer = choices[0]
        rng.shuffle(choices)
        found.append({"context": context, "choices": choices, "answer": choices.index(answer)})
    return found


def write_data(directory: Path, count: int) -> dict[str, Path]:
    script = [sys.executable, str(ROOT / "recipe" / "generate.py"), str(directory)]
    subprocess.run(script, check=True, stdout=subprocess.DEVNULL)
    held_out = (directory / "heldout-text.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line) for line in held_out][:count]
    words = [record for record in texts if record["text"].isascii()]
    written = {}
    for name, records in (("questions", questions(count)), ("words", words), ("text", texts)):
        written[name] = directory / f"{name}.jsonl"
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        written[name].write_text("".join(lines), encoding="utf-8")
    tasks = {
        "questions": ("multiple_choice", CHOICE),
        "words": ("loglikelihood", WORD),
        "text": ("loglikelihood_rolling", ROLLING),
    }
    for name, (kind, rest) in tasks.items():
        head = TASK.format(name=name, path=written[name], kind=kind)
        (directory / f"{name}.yaml").write_text(head + rest)
    return written


def start_server(model: Path) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "hagane.cli", "serve", "--model", str(model),
               "--port", str(port),
               "--served-model-name", "m"]  # fmt: skip
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return server, url
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    server.kill()
    raise SystemExit("the server did not get ready")


def harness(python: str, model: Path, url: str, directory: Path) -> dict[str, dict[str, float]]:
    """Run lm-evaluation-harness over HTTP, and return its figures."""
    context = json.loads((model / "config.json").read_text())["max_position_embeddings"]
    arguments = f"model=m,base_url={url}/v1/completions,tokenizer={model},max_length={context}"
    subprocess.run(
        [python, "-m", "lm_eval", "--model", "local-completions", "--model_args",
         f"{arguments},tokenizer_backend=huggingface,num_concurrent=8", "--tasks",
         "questions,words,text", "--include_path", str(directory), "--output_path",
         str(directory / "out")], check=True)  # fmt: skip
    (path,) = (directory / "out").rglob("results_*.json")
    return json.loads(path.read_text())["results"]


def hagane(model: Path, files: dict[str, Path]) -> dict[str, dict[str, float]]:
    command = [sys.executable, "-m", "hagane.cli", "eval", str(model), "--json"]
    command += ["--text", str(files["text"])]
    command += ["--questions", str(files["questions"]), str(files["words"])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {Path(path).stem: result for path, result in json.loads(done.stdout).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("harness")
    parser.add_argument("--model", default="hagane-mini")
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = resolve_model(options.model)
    with tempfile.TemporaryDirectory() as folder:
        files = write_data(Path(folder), options.count)
        ours = hagane(model, files)
        server, url = start_server(model)
        try:
            theirs = harness(options.harness, model, url, Path(folder))
        finally:
            server.terminate()
            server.wait()
    own, other = ours["questions"], theirs["questions"]
    rows = [
        ("accuracy", own["accuracy"], other["acc,none"]),
        ("accuracy by length", own["accuracy_norm"], other["acc_norm,none"]),
        ("last word", ours["words"]["accuracy"], theirs["words"]["acc,none"]),
        ("bits per byte", ours["text"]["bits_per_byte"], theirs["text"]["bits_per_byte,none"]),
    ]
    for name, mine, harness_says in rows:
        print(f"{name:20} hagane {mine:.6f}   lm-evaluation-harness {harness_says:.6f}")
    if options.json:
        options.json.write_text(json.dumps({"hagane": ours, "harness": theirs}, indent=1))


if __name__ == "__main__":
    main()
