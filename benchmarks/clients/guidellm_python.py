"""guidellm: a short benchmark of the chat route."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import harness


def chat() -> str:
    with tempfile.TemporaryDirectory() as folder:
        data, output = Path(folder, "data.jsonl"), Path(folder, "out.json")
        data.write_text(json.dumps({"prompt": harness.QUESTION}) + "\n")
        command = [str(Path(sys.executable).with_name("guidellm")), "benchmark", "--target",
                   harness.URL, "--model", harness.MODEL, "--data", str(data),
                   "--profile", "synchronous", "--max-requests", "1",
                   "--output-path", str(output)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not output.exists():
            raise RuntimeError((done.stderr or done.stdout)[-300:])
        (benchmark,) = json.loads(output.read_text())["benchmarks"]
        return benchmark["requests"]["successful"][0]["output"]


harness.run(["guidellm"], chat=chat)
