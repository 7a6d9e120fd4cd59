"""The report of `hagane doctor`, as a user and as a program reads it."""

from __future__ import annotations

import json
import socket

import pytest
import torch
from hagane.cli import doctor
from hagane.system.settings import Settings

from tests.support.server import hagane


def examine(**settings) -> dict[str, list[doctor.Finding]]:
    by_topic: dict[str, list[doctor.Finding]] = {}
    for finding in doctor.examine(Settings(_cli_parse_args=False, port=0, **settings)):
        by_topic.setdefault(finding.topic, []).append(finding)
    return by_topic


def test_a_machine_that_can_serve(tmp_path):
    result = hagane("doctor", "--json", "--port", "0", "--data-dir", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["status"] == "ok"
    findings = {finding["topic"]: finding for finding in report["findings"]}
    assert {"python", "cpu", "cores", "memory", "gpu", "kernels", "libraries"} <= findings.keys()
    assert findings["models"]["text"].startswith("hagane-mini: LlamaForCausalLM, float32, 19")
    assert "hagane-mini on " in findings["plan"]["text"]
    assert findings["data"]["text"].startswith(f"{tmp_path}: writable")


def test_what_keeps_the_server_from_running_is_status_1():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = hagane(
            "doctor", "--port", port, "--model", "no-such-model", "--data-dir", "/proc/hagane"
        )
    assert result.returncode == 1
    problems = [line for line in result.stdout.splitlines() if line.startswith("!!")]
    assert [line.split()[1] for line in problems] == ["data", "address", "plan"]
    assert f"127.0.0.1:{port}" in problems[1]
    assert "no-such-model" in problems[2]
    assert result.stdout.count("->") >= 3


@pytest.mark.parametrize("compiler", ["/usr/bin/c++", None])
def test_kernels_that_were_not_built_and_the_way_to_have_them(compiler):
    finding = doctor.missing_kernels(compiler)
    assert finding.status == "missing"
    assert ("is there now" if compiler else "apt-get install g++") in finding.remedy


def test_a_library_that_is_not_there():
    versions = doctor.installed_versions()
    assert versions["torch"] == torch.__version__
    for name in ("jinja2", "opentelemetry-sdk"):
        del versions[name]
    found = doctor.libraries(["jinja2>=3", "numpy", 'x; extra == "dev"'], versions)
    missing, *_, optional = found
    assert (missing.status, missing.text) == ("error", "jinja2 is not installed")
    assert optional.status == "missing"
    assert "opentelemetry-sdk" in optional.remedy


def test_an_open_address_without_a_key_is_told():
    warned, free = examine(host="0.0.0.0")["address"]
    assert (warned.status, free.status) == ("missing", "ok")
    assert "HAGANE_API_KEYS" in warned.remedy
    assert len(examine(host="0.0.0.0", api_keys="k")["address"]) == 1


def test_a_broken_model_in_the_store(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("{}")
    found = examine(models_dir=tmp_path, model="broken")
    status = {finding.text.split(":")[0]: finding.status for finding in found["models"]}
    assert status["broken"] == "missing"
    assert found["plan"][0].status == "error"
    assert "config.json" in found["plan"][0].text


def test_a_model_of_the_hub_is_not_fetched():
    (plan,) = examine(model="some/model")["plan"]
    assert "fetched from the hub" in plan.text
