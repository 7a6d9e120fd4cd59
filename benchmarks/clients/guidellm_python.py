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
        options = {
            "--backend": f"kind=openai_http,target={harness.URL},model={harness.MODEL}",
            "--profile": "kind=synchronous",
            "--constraint": "kind=max_requests,count=1",
            "--data": f"kind=json_file,path={data}",
            "--output": f"kind=json,path={output}",
        }
        command = [str(Path(sys.executable).with_name("guidellm")), "run", "--disable-console"]
        command += [word for option in options.items() for word in option]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not output.exists():
            raise RuntimeError((done.stderr or done.stdout)[-300:])
        (benchmark,) = json.loads(output.read_text())["benchmarks"]
        return benchmark["requests"]["successful"][0]["output"]


harness.run(["guidellm"], chat=chat)
