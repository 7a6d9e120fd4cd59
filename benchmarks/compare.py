"""Compare Hagane with its peers on this machine: alternating runs, medians, ratios, limits.

Usage: python benchmarks/compare.py [--llama PYTHON] [--openvino PYTHON] [--model DIRECTORY]
                                    [--gguf FILE ...] [--rounds N] [--only NAME ...]
                                    [--prompts N ...] [--streams N ...] [--json FILE]

The load is a random model in Qwen3-0.6B's shape, or the real one in DIRECTORY. A GGUF file, whose
name ends in its type as in `qwen-Q4_K_M.gguf`, is served by both Hagane and llama.cpp: the same
weights with the same bits. transformers is always compared; other peers are,
too, where the interpreter of an environment that has them is given:

    python -m venv runs/llama && runs/llama/bin/pip install llama-cpp-python gguf
    python -m venv runs/openvino && runs/openvino/bin/pip install \\
        openvino-genai optimum-intel[openvino] nncf torch

With --json, figures that the file holds are kept and those of this run added, so that a comparison
can be made in pieces; `--rounds 0` prints the tables of what it holds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hagane.system.machine import usable_cores
from model import make_model

HERE = Path(__file__).resolve().parent
PLAN = {
    "streams": [1, 4, 16, 32],
    "prompts": [512, 2048, 8192],
    "context": 128,
    "new_tokens": 32,
    "tail": 32,  # tokens after a prefix that is cached
    "rounds": 1,
}
LAYER_WEIGHTS = 28 * (1024 * 4096 + 2048 * 1024 + 1024 * 6144 + 3072 * 1024)  # of the shape
Results = dict[str, list[dict]]


def limits() -> dict[str, float]:
    """The machine's limits: bytes read per second, and FLOP/s of torch's matrix products.

    Products are of the shape's largest matrix with 512 rows, in int8 and bf16; each is the best of
    several.
    """

    def best(work: float, run: Callable[[], object]) -> float:
        seconds = []
        for _ in range(20):
            begin = time.monotonic()
            run()
            seconds.append(time.monotonic() - begin)
        return work / min(seconds)

    data = torch.ones(1 << 26, dtype=torch.float32)
    rows, weights = torch.ones(512, 1024), torch.ones(6144, 1024)
    work = 2.0 * rows.numel() * weights.shape[0]
    narrow, narrow_weights = rows.bfloat16(), weights.bfloat16().T
    codes, weight_codes = rows.char(), weights.char().T
    return {
        "memory": best(data.nbytes, data.sum),
        "bf16": best(work, lambda: narrow @ narrow_weights),
        "int8": best(work, lambda: torch._int_mm(codes, weight_codes)),
    }


def run(command: list[str]) -> dict:
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def hagane(model: Path, plan: dict) -> dict:
    numbers = {key: ",".join(map(str, plan[key])) for key in ("streams", "prompts")}
    return run([
        sys.executable, "-m", "hagane.cli", "bench", str(model), "--json",
        "--streams", numbers["streams"], "--prompts", numbers["prompts"], "--rounds", "1",
        "--new-tokens", str(plan["new_tokens"]), "--threads", str(plan["threads"]),
    ])  # fmt: skip


def prepare(model: Path, llama: str | None, openvino: str | None) -> dict[str, Path]:
    """Make every file to compare, once."""
    if not (model / "config.json").is_file():
        make_model(model)
    files = {"bf16": model}
    for bits in ("int8", "int4"):
        files[bits] = model.with_name(f"{model.name}-{bits}")
        if not files[bits].is_dir():
            command = [sys.executable, "-m", "hagane.cli", "quantize", str(model), str(files[bits])]
            subprocess.run([*command, f"--{bits}", "--no-measure"], check=True)
    for kind in ("Q8_0", "Q4_0") if llama else ():
        files[kind] = model.with_name(f"{model.name}-{kind}.gguf")
        if not files[kind].is_file():
            script = str(HERE / "peer_llama.py")
            paths = [str(model), str(files[kind])]
            subprocess.run([llama, script, "--convert", *paths, kind], check=True)
    if openvino:
        files["g64"] = model.with_name(f"{model.name}-openvino-int4")
        if not files["g64"].is_dir():
            script = str(HERE / "peer_openvino.py")
            paths = [str(model), str(files["g64"])]
            subprocess.run([openvino, script, "--convert", *paths], check=True)
    return files


def make_runners(
    options: argparse.Namespace, files: dict[str, Path]
) -> dict[str, Callable[[], dict]]:
    """The command that measures each engine once, by its name in the table."""
    asked = {"prompts": options.prompts, "streams": options.streams}
    plan = PLAN | {"threads": len(usable_cores())} | asked
    plan_file = options.model.with_name("plan.json")
    plan_file.write_text(json.dumps(plan))

    def peer(python: str, script: str, model: Path) -> Callable[[], dict]:
        return lambda: run([python, str(HERE / script), str(model), str(plan_file)])

    runners = {
        f"Hagane {kind}": lambda kind=kind: hagane(files[kind], plan)
        for kind in ("bf16", "int8", "int4")
    }
    runners["transformers bf16"] = peer(sys.executable, "peer_transformers.py", files["bf16"])
    for kind in ("Q8_0", "Q4_0") if options.llama else ():
        runners[f"llama.cpp {kind}"] = peer(options.llama, "peer_llama.py", files[kind])
    if options.openvino:
        runners["OpenVINO int4 g64"] = peer(options.openvino, "peer_openvino.py", files["g64"])
    for path in options.gguf:
        kind = path.stem.rpartition("-")[2]
        runners[f"Hagane GGUF {kind}"] = lambda path=path: hagane(path, plan)
        if options.llama:
            runners[f"llama.cpp GGUF {kind}"] = peer(options.llama, "peer_llama.py", path)
    chosen = options.only or list(runners)
    return {name: measure for name, measure in runners.items() if name in chosen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama", help="Python of an environment with llama-cpp-python and gguf")
    parser.add_argument("--openvino", help="Python of an environment with OpenVINO's packages")
    parser.add_argument("--model", type=Path, default=Path("runs/qwen3-0.6b-shape"))
    parser.add_argument("--gguf", nargs="+", type=Path, default=[], help="files for both engines")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="names of the table's rows to measure")
    parser.add_argument("--prompts", nargs="+", type=int, default=PLAN["prompts"])
    parser.add_argument("--streams", nargs="+", type=int, default=PLAN["streams"])
    parser.add_argument("--json", type=Path, help="file for every single figure")
    options = parser.parse_args()
    files = prepare(options.model, options.llama, options.openvino)
    runners = make_runners(options, files)
    saved: dict = {"limits": {}, "plan": PLAN, "results": {}}
    if options.json and options.json.is_file():
        saved = json.loads(options.json.read_text())
    if options.rounds:
        for name, value in limits().items():
            saved["limits"][name] = max(value, saved["limits"].get(name, 0.0))
    for _ in range(options.rounds):
        for name, measure in runners.items():
            saved["results"].setdefault(name, []).append(measure())
            print(f"{name}: {saved['results'][name][-1]}", file=sys.stderr, flush=True)
            if options.json:
                options.json.write_text(json.dumps(saved, indent=1))
    print(tables(saved["results"], saved["limits"], files))


def median(rounds: list[dict], kind: str, key: int | None = None) -> float | None:
    """Median of a figure over all rounds; None if it was not measured."""
    values = [r.get(kind) if key is None else r.get(kind, {}).get(str(key)) for r in rounds]
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def show(value: float | None, form: str, scale: float = 1.0) -> str:
    return "-" if value is None else form.format(scale * value)


def tables(results: Results, limit: dict[str, float], files: dict[str, Path]) -> str:
    """Print speeds with ratios to the best peer, then the other figures."""
    return "\n".join([*speeds(results), "", *costs(results, limit, files)])


def speeds(results: Results) -> list[str]:
    columns = [("prefill", n) for n in PLAN["prompts"]] + [("decode", n) for n in PLAN["streams"]]
    heads = [f"prefill {n}" for n in PLAN["prompts"]]
    heads += [f"{n} stream{'s' * (n > 1)}" for n in PLAN["streams"]]
    lines = [
        f"Tokens/s, medians of {min(map(len, results.values()))} alternating runs, "
        f"{len(usable_cores())} threads.",
        "",
        f"| | {' | '.join(heads)} |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for name, rounds in results.items():
        cells = [show(median(rounds, *at), "{:.0f}" if at[1] > 4 else "{:.1f}") for at in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    peers = [rounds for name, rounds in results.items() if not name.startswith("Hagane")]
    for name, rounds in results.items():
        if peers and name.startswith("Hagane"):
            best = [max(median(peer, *at) or 0.0 for peer in peers) for at in columns]
            ratios = [
                show(median(rounds, *at), "x{:.2f}", 1 / top if top else 0.0)
                for at, top in zip(columns, best, strict=True)
            ]
            lines.append(f"| {name} : best peer | {' | '.join(ratios)} |")
    return lines


def costs(results: Results, limit: dict[str, float], files: dict[str, Path]) -> list[str]:
    """Start-up, memory, prefix hits, and speeds as fractions of the machine's limits."""
    hits = [n for n in PLAN["prompts"] if n > PLAN["prompts"][0]]
    heads = "".join(f" prefix hit of {n} |" for n in hits)
    figures = ", ".join(
        f"{name} {value / 1e9:.0f} {'GB/s' if name == 'memory' else 'GOP/s'}"
        for name, value in limit.items()
    )
    lines = [
        f"The machine's limits: {figures}.",
        "",
        f"| | ready | peak memory |{heads} prefill 512, of the product | 1 stream, of the memory |",
        "|---" * (5 + len(hits)) + "|",
    ]
    for name, rounds in results.items():
        product = limit["bf16" if name.endswith("bf16") else "int8"]
        size = weight_bytes(files.get(name.split()[-1], Path()))
        cells = [
            show(median(rounds, "ready_seconds"), "{:.1f} s"),
            show(median(rounds, "peak_memory"), "{:.2f} GB", 1e-9),
            *(show(median(rounds, "prefix_hit", n), "{:.0f} ms", 1000) for n in hits),
            show(median(rounds, "prefill", 512), "{:.0%}", 2.0 * LAYER_WEIGHTS / product),
            show(median(rounds, "decode", 1) if size else None, "{:.0%}", size / limit["memory"]),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def weight_bytes(path: Path) -> int:
    names = ("model.safetensors", "openvino_model.bin")
    file = next((path / name for name in names if (path / name).is_file()), path)
    return file.stat().st_size if file.is_file() else 0


if __name__ == "__main__":
    main()
