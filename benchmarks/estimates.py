"""How long whole fine-tuning runs take, over what their reports say beforehand.

Usage: python benchmarks/estimates.py [--model DIRECTORY] [--seconds N] [--threads N] [--json FILE]

Runs of the built-in model by several methods, and with --model one of that model in int8, each with
as many examples as should take about --seconds. A run is the process of `hagane finetune`, from its
start to its end; the estimate is that of a file's report. Meaningful on an idle machine alone.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from hagane.data.records import Method
from hagane.text.hub import resolve_model
from hagane.training.finetune.examples import FileReport, report
from hagane.training.finetune.spec import FineTuneSpec

WORDS = ("rain", "sun", "forge", "cat", "iron", "river", "night", "bread", "song", "stone")
FEWEST, MOST = 16, 4000


@dataclass(frozen=True)
class Case:
    """A run to make, without its file."""

    name: str
    model: Path
    method: Method
    quantize: str = "none"

    def lines(self, count: int) -> list[dict]:
        """Examples of about 60 tokens."""
        choose = random.Random(0)

        def text() -> str:
            return " ".join(choose.choices(WORDS, k=24))

        made = []
        for number in range(count):
            prompt, answer = f"Number {number}: {text()}?", text()
            if self.method in ("dpo", "orpo"):
                made.append({"prompt": prompt, "chosen": answer, "rejected": text()})
            elif self.method == "kto":
                made.append({"prompt": prompt, "completion": answer, "label": number % 2 == 0})
            else:
                made.append({"prompt": prompt, "completion": answer})
        return made

    def expect(self, folder: Path, count: int, threads: int) -> FileReport:
        """Write a file of `count` examples, and read its report."""
        file = folder / "train.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in self.lines(count)))
        spec = FineTuneSpec(
            model=self.model, training_file=file, method=self.method, n_epochs=1, batch_size=8,
            quantize=self.quantize, threads=threads,
        )  # fmt: skip
        return report(spec)

    def sized(self, folder: Path, seconds: float, threads: int) -> FileReport:
        """The report of as many examples as should take `seconds`."""
        few = self.expect(folder, FEWEST, threads).seconds
        more = self.expect(folder, 2 * FEWEST, threads).seconds
        each = max((more - few) / FEWEST, 1e-6)
        count = FEWEST + int((seconds - few) / each)
        return self.expect(folder, min(max(count, FEWEST), MOST), threads)

    def command(self, folder: Path, threads: int) -> list[str]:
        return [
            sys.executable, "-m", "hagane.cli", "finetune", str(folder / "train.jsonl"),
            "--model", str(self.model), "--output", str(folder / "run"), "--method", self.method,
            "--n-epochs", "1", "--batch-size", "8", "--threads", str(threads),
            *(["--quantize", self.quantize] if self.quantize != "none" else []),
        ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="another model, in int8")
    parser.add_argument("--seconds", type=float, default=40.0, help="of a run, as estimated")
    parser.add_argument("--threads", type=int, default=1, help="a job's on two cores")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    small = resolve_model("hagane-mini")
    cases = [Case(f"built-in, {method}", small, method) for method in ("supervised", "dpo", "kto")]
    cases.insert(1, Case("built-in, supervised, int8", small, "supervised", "int8"))
    if options.model:
        large = resolve_model(options.model)
        cases.append(Case(f"{large.name}, supervised, int8", large, "supervised", "int8"))
    found = []
    print("| run | steps | estimated | took | ratio |\n|---|---|---|---|---|")
    for case in cases:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            expected = case.sized(folder, options.seconds, options.threads)
            started = time.monotonic()
            subprocess.run(
                case.command(folder, options.threads),
                check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            took = time.monotonic() - started
        ratio = took / expected.seconds
        found.append({"run": case.name, "steps": expected.steps, "estimated": expected.seconds,
                      "took": took, "ratio": ratio})  # fmt: skip
        print(f"| {case.name} | {expected.steps} | {expected.seconds:.0f} s | {took:.0f} s "
              f"| {ratio:.2f} |", flush=True)  # fmt: skip
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
