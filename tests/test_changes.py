"""The table of likely changes, held to: each toy is added to a copy of the package and counted."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import httpx
import pytest

from tests.support.server import start_server, stop_server

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


class Copy:
    """A copy of the package, and how many files each change touched."""

    def __init__(self, folder: Path) -> None:
        ignored = shutil.ignore_patterns("cuda", "*.cpp", "*.inc", "*.h", "__pycache__")
        self.source = folder / "app"
        shutil.copytree(ROOT / "app" / "hagane", self.source / "hagane", ignore=ignored)
        # Where a checkout keeps the built-in models.
        (folder / "models").mkdir()
        self.touched: dict[str, set[Path]] = {}

    def add(self, change: str, path: str, text: str) -> None:
        file = self.source / "hagane" / path
        assert not file.exists()
        file.write_text(text)
        self.touched.setdefault(change, set()).add(file)

    def edit(self, change: str, pattern: str, replacement: str) -> None:
        """Replace every match, in whichever files have one: the toy does not know the layout."""
        changed = 0
        for file in self.source.rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            edited = re.sub(pattern, replacement, text, flags=re.MULTILINE)
            if edited != text:
                file.write_text(edited, encoding="utf-8")
                self.touched.setdefault(change, set()).add(file)
                changed += 1
        assert changed, f"nothing matches {pattern!r}: say here where {change} is done now"


def add_sampling_parameter(copy: Copy) -> None:
    """`forced`: the token that is always chosen. It travels as `ignore_eos` does."""
    change = "add a sampling parameter"
    copy.edit(change, r"^( +)(ignore_eos: \w+ = False)$", r"\1\2\n\1forced: int = -1")
    copy.edit(change, r"^( +)(ignore_eos=(\w+)\.ignore_eos,)$", r"\1\2\n\1forced=\3.forced,")
    copy.edit(change, r"(adjusts=bool\()", r"\1sampling.forced >= 0 or ")
    copy.edit(
        change,
        r"^( +)(bias = sequence\.sampling\.logit_bias)$",
        r"\1if sequence.sampling.forced >= 0:\n\1    row.fill_(-torch.inf)\n"
        r"\1    row[sequence.sampling.forced] = 0.0\n\1\2",
    )


def add_route(copy: Copy) -> None:
    change = "add a route"
    copy.add(
        change,
        "api/hagane/toy.py",
        "from hagane.api.access import guarded_router\n\nrouter = guarded_router()\n\n\n"
        "@router.get('/toy')\nasync def toy() -> dict[str, str]:\n    return {'toy': 'here'}\n",
    )
    copy.edit(change, r'^( +)("GET /health/live": _OPEN,)$', r'\1\2\n\1"GET /toy": _OPEN,')
    copy.edit(change, r"^(    health,)$", r"\1\n    toy,")
    copy.edit(change, r"(\bhealth, metrics,)", r"\1 toy,")


def add_architecture(copy: Copy) -> None:
    """A family whose blocks are Llama's, under a name of its own."""
    copy.edit(
        "support another architecture",
        r'^( +)("LlamaForCausalLM": Family\()',
        r'\1"ToyForCausalLM": Family("Toy", "llama", Keys, llama.llama),\n\1\2',
    )


def add_weight_format(copy: Copy) -> None:
    """`toy`: matrices in float16, without a kernel of their own."""
    change = "add a weight format"
    copy.edit(
        change,
        r'^( +)(WeightFormat\("int4", )',
        r'\1WeightFormat("toy", "half", bits=16.0, training_bytes=2.0, integer=False),\n\1\2',
    )
    copy.add(change, "models/formats/toy.py", TOY_FORMAT)
    copy.edit(
        change,
        r"^(from hagane\.models\.formats\.layer import Linear, Quantized.*)$",
        r"\1\nfrom hagane.models.formats.toy import Toy",
    )
    copy.edit(
        change,
        r'^( +)"int4": _int4,$',
        r'\1"int4": _int4,\n\1"toy": lambda *shape: Toy(*shape[:3]),',
    )


TOY_FORMAT = """
import torch
from torch.nn import functional as F

from hagane.kernels import cpu
from hagane.models.formats.layer import QuantizedLinear, added, make_bias
from hagane.models.serving_layers import Packed


class Toy(QuantizedLinear):
    def __init__(self, in_features, out_features, bias):
        super().__init__()
        self.in_features = in_features
        empty = torch.empty(out_features, in_features, dtype=torch.float16)
        self.register_buffer("weight_toy", empty)
        self.bias = make_bias(out_features, bias)

    def quantize(self, weight):
        return {"weight_toy": weight.half()}

    def matrix(self, dtype):
        return self.weight_toy.to(dtype)

    def forward(self, x, residual=None):
        return added(F.linear(x, self.matrix(x.dtype), self.bias), residual)

    def for_cpu(self, dtype):
        return Packed(cpu.pack_dense(self.matrix(dtype), self.bias))
"""

CHANGES = (add_sampling_parameter, add_route, add_architecture, add_weight_format)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Copy:
    made = Copy(tmp_path_factory.mktemp("changed"))
    for change in CHANGES:
        change(made)
    return made


@pytest.fixture(scope="module")
def changed(copy, tiny_model_dir, tmp_path_factory):
    """A server from the copy, on a model of the toy family in the toy format."""
    folder = tmp_path_factory.mktemp("toy")
    model = folder / "toy"
    shutil.copytree(tiny_model_dir, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["ToyForCausalLM"]}))
    server = start_server(model, folder / "log", PYTHONPATH=str(copy.source), HAGANE_QUANTIZE="toy")
    server.wait_ready()
    yield server
    stop_server(server)


def test_the_changes_work(changed):
    assert httpx.get(f"{changed.url}/toy").json() == {"toy": "here"}
    body = {"model": "toy", "prompt": "Once", "max_tokens": 3, "ignore_eos": True, "forced": 40}
    answer = httpx.post(f"{changed.url}/v1/completions", json=body, timeout=60).json()
    text = answer["choices"][0]["text"]
    assert len(text) == 3
    assert len(set(text)) == 1


def rows() -> dict[str, tuple[int, str]]:
    """(number of files, what the row names) by the row's change."""
    section = ARCHITECTURE.split("## Where to make likely changes")[1].split("\n## ")[0]
    found = re.findall(r"^\| ([^|]+) \| (\d+) \| ([^|]+) \|$", section, re.MULTILINE)
    return {change: (int(count), touch) for change, count, touch in found}


def test_the_table_counts_as_many_files_as_the_changes_touched(copy):
    counted = {change: len(files) for change, files in copy.touched.items()}
    assert counted == {change: rows()[change][0] for change in counted}


def test_the_table_names_the_files_that_the_changes_touched(copy):
    for change, files in copy.touched.items():
        for file in files:
            name = file.relative_to(copy.source / "hagane").as_posix()
            if file.stem != "toy":
                assert f"`{name}`" in rows()[change][1], f"{change} touches {name}"
