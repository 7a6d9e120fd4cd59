"""Checks of the image and its surroundings without an engine to run them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import httpx
import pytest
import yaml
from hagane.cluster.config import ClusterConfig
from hagane.kernels import cpu
from hagane.system.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
SETTINGS = {PREFIX + name.upper() for name in Settings.model_fields}


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, its arguments on one line) of a Dockerfile."""
    plain = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    lines = re.sub(r"\\\n\s*", " ", plain).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]  # type: ignore[misc]


DOCKERFILE = instructions((ROOT / "Dockerfile").read_text())
LAST_STAGE = max(at for at, (name, _) in enumerate(DOCKERFILE) if name == "FROM")
FINAL = DOCKERFILE[LAST_STAGE:]
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
MANIFESTS = list(yaml.safe_load_all((DOCKER / "kubernetes.yaml").read_text()))
POD = next(m for m in MANIFESTS if m["kind"] == "StatefulSet")["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]


def final(name: str) -> str:
    (arguments,) = [arguments for given, arguments in FINAL if given == name]
    return arguments


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def test_only_the_image_for_gpus_has_a_compiler():
    assert final("FROM") == "runtime-${DEVICE}"
    names = [arguments for name, arguments in DOCKERFILE if name == "FROM"]
    assert names == [
        "${PYTHON} AS builder", "${PYTHON} AS runtime-cpu", "${PYTHON} AS runtime-cuda",
        "runtime-${DEVICE}",
    ]  # fmt: skip
    start = DOCKERFILE.index(("FROM", "${PYTHON} AS runtime-cpu"))
    assert DOCKERFILE[start + 1][0] == "FROM"


def test_the_final_stage_runs_nothing_and_is_nobody():
    assert not [name for name, _ in FINAL if name in ("RUN", "ADD", "SHELL")]
    assert final("USER").split(":")[0] not in ("0", "root")
    assert json.loads(final("VOLUME")) == ["/data", "/models"]
    assert json.loads(final("ENTRYPOINT")) == ["hagane"]  # no shell between signals and server
    assert final("STOPSIGNAL") == "SIGTERM"
    assert "/health/ready" in final("HEALTHCHECK")


def test_the_health_check_asks_the_server(server, monkeypatch):
    command = json.loads(final("HEALTHCHECK").split("CMD ", 1)[1].replace("  ", " "))
    assert command[:2] == ["python", "-c"]
    monkeypatch.setenv("HAGANE_PORT", server.url.rpartition(":")[2])
    with pytest.raises(SystemExit) as ended:
        exec(command[2], {})
    assert not ended.value.code
    monkeypatch.setenv("HAGANE_PORT", "9")
    with pytest.raises(ConnectionRefusedError):
        exec(command[2], {})


def test_the_python_of_the_build_runs(monkeypatch):
    run = " ".join(arguments for name, arguments in DOCKERFILE if name == "RUN")
    snippets = re.findall(r"python -c '([^']+)'", run)
    assert len(snippets) == 4
    for snippet in snippets:
        if "cpu.available()" in snippet and not cpu.available():
            continue
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr("sys.argv", ["-c", "cpu"])
        exec(snippet, {})


def test_what_the_image_copies_reaches_the_builder():
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = set()
    for name, arguments in DOCKERFILE:
        if name == "COPY" and "--from" not in arguments:
            copied |= set(shlex.split(arguments)[:-1])
    assert copied == allowed
    assert all((ROOT / path).exists() for path in copied)


def test_every_hagane_variable_is_a_setting():
    in_image = {word.split("=")[0] for word in shlex.split(final("ENV"))}
    in_compose = set(COMPOSE["services"]["hagane"]["environment"])
    in_pod = {entry["name"] for entry in CONTAINER["env"]}
    given = in_image | in_compose | in_pod
    assert {name for name in given if name.startswith(PREFIX)} <= SETTINGS
    # Services make variables of their names, and these would begin with HAGANE_.
    assert POD["enableServiceLinks"] is False


def test_whoever_stops_the_server_waits_longer_than_its_grace():
    service = COMPOSE["services"]["hagane"]
    grace = int(service["environment"]["HAGANE_SHUTDOWN_GRACE"])
    assert seconds(service["stop_grace_period"]) > grace + 10
    environment = {entry["name"]: entry.get("value") for entry in CONTAINER["env"]}
    assert POD["terminationGracePeriodSeconds"] > int(environment["HAGANE_SHUTDOWN_GRACE"]) + 10


def test_the_root_file_system_is_read_only_and_nobody_has_capabilities():
    service = COMPOSE["services"]["hagane"]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    context = CONTAINER["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"]["drop"] == ["ALL"]
    assert POD["securityContext"]["runAsNonRoot"] is True
    user = str(POD["securityContext"]["runAsUser"])
    assert final("USER") == f"{user}:{user}"


def test_the_manifest_for_ray_holds_a_cluster_that_can_be_built():
    secret, service = yaml.safe_load_all((DOCKER / "kuberay.yaml").read_text())
    assert {*secret["stringData"]} <= SETTINGS
    serve = yaml.safe_load(service["spec"]["serveConfigV2"])
    (application,) = serve["applications"]
    cluster = ClusterConfig.of(application["args"], "kuberay.yaml")
    Settings(**cluster.settings)
    ray = service["spec"]["rayClusterConfig"]
    pods = [ray["headGroupSpec"], *ray["workerGroupSpecs"]]
    specs = [pod["template"]["spec"] for pod in pods]
    for spec in specs:
        assert spec["enableServiceLinks"] is False
        ports = {port["name"]: port["containerPort"] for port in spec["containers"][0]["ports"]}
        assert ports["serve"] == serve["http_options"]["port"]
    grace = specs[1]["terminationGracePeriodSeconds"]
    assert grace > cluster.engines.drain_seconds
    room = int(specs[1]["containers"][0]["resources"]["requests"]["cpu"])
    assert room >= cluster.edges + cluster.engines.cpus


def test_published_ports_are_of_this_machine_alone():
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_mounted_files_are_there():
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source = re.sub(r"^\$\{\w+:-(\w+)\}", r"\1", volume).split(":")[0]
            assert source in COMPOSE["volumes"] or (DOCKER / source).exists()


def test_probes_ask_routes_that_exist(server):
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        path = CONTAINER[probe]["httpGet"]["path"]
        assert httpx.get(f"{server.url}{path}").status_code == 200


def expressions() -> dict[str, str]:
    """Every PromQL expression outside the server, by where it stands."""
    rules = yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text())
    found = {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}
    dashboard = json.loads((DOCKER / "grafana/dashboards/hagane.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            found[f"{panel['title']}: {target['refId']}"] = target["expr"]
    for variable in dashboard["templating"]["list"]:
        found[variable["name"]] = variable["query"]["query"]
    scaler = next(m for m in MANIFESTS if m["kind"] == "HorizontalPodAutoscaler")
    found["autoscaler"] = scaler["spec"]["metrics"][0]["pods"]["metric"]["name"]
    return found


def test_every_metric_that_is_looked_at_exists(server):
    served: set[str] = set()
    for name, kind in re.findall(
        r"^# TYPE (\S+) (\S+)$", httpx.get(f"{server.url}/metrics").text, re.MULTILINE
    ):
        served.add(name)
        if kind == "histogram":
            served |= {f"{name}_bucket", f"{name}_count", f"{name}_sum"}
    for place, expression in expressions().items():
        used = set(re.findall(r"\bhagane_\w+", expression))
        assert used or "up{" in expression, place
        assert used <= served, f"{place}: {used - served}"


def test_the_dashboard_asks_the_provisioned_source():
    text = (DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    (source,) = yaml.safe_load(text)["datasources"]
    dashboard = json.loads((DOCKER / "grafana/dashboards/hagane.json").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
