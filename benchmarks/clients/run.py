"""Put stock clients and frameworks through chat, a tool loop, structured output and embeddings.

Each runs in an environment of its own below `--cache`, made when it is missing. The table goes to
standard output; why a check failed, to standard error.

Usage: python benchmarks/clients/run.py (--model MODEL [--quantize int8] | --url URL --name NAME)
       [--only NAME ...] [--checks CHECK ...] [--cache FOLDER] [--tokenizer FOLDER]
       [--constraint PIN ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CHECKS = ("chat", "tools", "structured", "embeddings")
SECONDS = 900


@dataclass(frozen=True)
class Client:
    """A client: its file, and what to install for it (nothing: the packages of node)."""

    name: str
    file: str
    packages: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        return self.name if self.packages else "node"


CLIENTS = (
    Client("openai-python", "openai_python.py", ("openai", "pydantic")),
    Client("openai-node", "node/openai.mjs"),
    Client("ai-sdk-openai", "node/ai_sdk_openai.mjs"),
    Client("ai-sdk-compatible", "node/ai_sdk_compatible.mjs"),
    Client("anthropic", "anthropic_python.py", ("anthropic",)),
    Client("litellm", "litellm_python.py", ("litellm",)),
    Client("langchain", "langchain_python.py", ("langchain", "langchain-openai")),
    Client("llama-index", "llama_index_python.py",
           ("llama-index-core", "llama-index-llms-openai-like",
            "llama-index-embeddings-openai-like")),
    Client("instructor", "instructor_python.py", ("instructor",)),
    Client("openai-agents", "openai_agents_python.py", ("openai-agents",)),
    Client("pydantic-ai", "pydantic_ai_python.py", ("pydantic-ai-slim[openai,anthropic]",)),
    Client("smolagents", "smolagents_python.py", ("smolagents[openai]",)),
    Client("dspy", "dspy_python.py", ("dspy", "numpy")),
    Client("outlines", "outlines_python.py", ("outlines", "openai")),
    Client("llm", "llm_python.py", ("llm",)),
    Client("guidellm", "guidellm_python.py", ("guidellm",)),
    Client("lm-eval", "lm_eval_python.py", ("lm-eval[api]", "transformers")),
)  # fmt: skip


def prepare(client: Client, cache: Path, constraints: list[str]) -> str:
    """Make the client's environment; returns what went wrong."""
    folder = cache / client.folder
    if client.packages:
        if (folder / "bin" / "python").exists():
            return ""
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pins = cache / "constraints.txt"
        pins.write_text("".join(f"{pin}\n" for pin in constraints))
        command = [str(folder / "bin" / "pip"), "install", "-q", "-c", str(pins), *client.packages]
    else:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (HERE / "node").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        if (folder / "node_modules").is_dir():
            return ""
        command = ["npm", "install", "--silent", "--prefix", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"cannot be installed: {done.stderr[-200:]}"


def put_through(client: Client, cache: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run the client's file, and read the line of JSON that it ends with."""
    folder = cache / client.folder
    if client.packages:
        command, place = [str(folder / "bin" / "python"), str(HERE / client.file)], HERE
    else:
        command, place = ["node", Path(client.file).name], folder
    try:
        done = subprocess.run(
            command, cwd=place, env=os.environ | environment, capture_output=True, text=True,
            timeout=SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"versions": {}, "results": {"chat": f"no end after {SECONDS} s"}}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith('{"versions"'):
            return json.loads(line)
    return {"versions": {}, "results": {"chat": done.stderr[-400:]}}


@contextmanager
def address(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """The server that was given, or one that is started: its URL, and the model's name."""
    if options.url:
        yield options.url.rstrip("/"), options.name
        return
    sys.path.insert(0, str(ROOT))
    from tests.support.server import start_server, stop_server

    with tempfile.TemporaryDirectory() as folder:
        flags = ("--quantize", options.quantize, "--served-model-name", options.name)
        data = {"HAGANE_DATA_DIR": str(Path(folder) / "data")}
        server = start_server(options.model, Path(folder) / "log", *flags, **data)
        try:
            server.wait_ready(600)
            yield server.url, options.name
        finally:
            stop_server(server)


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = ["| client | versions | " + " | ".join(CHECKS) + " |", "|---" * 6 + "|"]
    for name, result in found.items():
        versions = ", ".join(f"{key} {value}" for key, value in result["versions"].items())
        if not versions:
            versions = "not available"
        cells = (result["results"].get(check) for check in CHECKS)
        marks = ("" if cell is None else "pass" if cell == "pass" else "FAIL" for cell in cells)
        lines.append(f"| {name} | {versions} | " + " | ".join(marks) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="hagane-mini")
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--name", default="local-model", help="the model's name there")
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=[])
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "hagane-clients")
    parser.add_argument("--tokenizer", help="folder of the model's tokenizer, for lm-eval")
    parser.add_argument("--constraint", nargs="*", default=["torch==2.13.0"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    with address(options) as (url, name):
        environment = {"HAGANE_CLIENT_URL": url, "HAGANE_CLIENT_MODEL": name}
        environment["HAGANE_CLIENT_TOKENIZER"] = options.tokenizer or options.model
        environment["HAGANE_CLIENT_CHECKS"] = " ".join(options.checks)
        for client in CLIENTS:
            if options.only and client.name not in options.only:
                continue
            problem = prepare(client, options.cache, options.constraint)
            if problem:
                found[client.name] = {"versions": {}, "results": {"install": problem}}
            else:
                found[client.name] = put_through(client, options.cache, environment)
            for check, result in found[client.name]["results"].items():
                if result != "pass":
                    print(f"{client.name} {check}: {result}", file=sys.stderr, flush=True)
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
