"""Logs and traces of a real server, the latter read by a collector of the test's own."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import pytest
from hagane.server.middleware import RequestContext
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as conventions
from prometheus_client import CollectorRegistry, Counter

from tests.support.server import Server, hagane, start_server, stop_server

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector(http.server.ThreadingHTTPServer):
    """Takes spans by OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Export)
        self.exports: list[ExportTraceServiceRequest] = []

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for export in self.exports
            for resource in export.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Export(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.exports.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    yield collector
    collector.shutdown()


@pytest.fixture(scope="module")
def traced(collector, tiny_model_dir, tmp_path_factory) -> Iterator[Server]:
    server = start_server(
        tiny_model_dir,
        tmp_path_factory.mktemp("traced") / "log",
        *("--log-level", "debug", "--log-format", "json", "--served-model-name", "tiny"),
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.server_port}",
        OTEL_BSP_SCHEDULE_DELAY="50",
    )
    server.wait_ready()
    yield server
    stop_server(server)


@pytest.fixture(scope="module")
def answered(traced) -> httpx.Response:
    return httpx.post(
        f"{traced.url}/v1/completions",
        json={"model": "tiny", "prompt": [5] * 40, "max_tokens": 8, "ignore_eos": True},
        headers={"X-Request-Id": "order-66", "traceparent": f"00-{TRACE}-{PARENT}-01"},
        timeout=60,
    )


def appears(server: Server, text: str) -> bool:
    """Whether `text` is in the log, or comes soon."""
    deadline = time.monotonic() + 10
    while text not in server.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    return text in server.log.read_text()


def attributes(span: Span) -> dict[str, str | int]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_one_span_per_request_with_its_phases(answered, collector):
    assert answered.status_code == 200
    deadline = time.monotonic() + 10
    while len(collector.spans) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    spans = {span.name: span for span in collector.spans}
    assert set(spans) == {"POST /v1/completions", "queue", "prefill", "decode"}
    request = spans.pop("POST /v1/completions")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes(request)["http.response.status_code"] == 200
    assert attributes(request)["hagane.request_id"] == "order-66"
    moment = request.start_time_unix_nano
    for name in ("queue", "prefill", "decode"):
        span = spans[name]
        assert span.parent_span_id == request.span_id
        assert moment - 1_000_000 <= span.start_time_unix_nano <= span.end_time_unix_nano
        moment = span.end_time_unix_nano
    assert moment <= request.end_time_unix_nano + 1_000_000
    assert attributes(spans["prefill"])[conventions.GEN_AI_USAGE_INPUT_TOKENS] == 40
    assert attributes(spans["decode"])[conventions.GEN_AI_USAGE_OUTPUT_TOKENS] == 8
    said = {
        conventions.GEN_AI_OPERATION_NAME: "text_completion",
        conventions.GEN_AI_PROVIDER_NAME: "hagane",
        conventions.GEN_AI_REQUEST_MODEL: "tiny",
        conventions.GEN_AI_RESPONSE_MODEL: "tiny",
        conventions.GEN_AI_REQUEST_MAX_TOKENS: 8,
        conventions.GEN_AI_USAGE_INPUT_TOKENS: 40,
        conventions.GEN_AI_USAGE_OUTPUT_TOKENS: 8,
    }
    assert said.items() <= attributes(request).items()
    resource = collector.exports[0].resource_spans[0].resource
    assert {a.key: a.value.string_value for a in resource.attributes}["service.name"] == "hagane"


def test_lines_of_every_process_carry_the_request_id(answered, traced):
    # The engine's line and the API's come in either order, and after the answer.
    for text in ('"finished', '"path": "/v1/completions"'):
        assert appears(traced, text)
    lines = [json.loads(line) for line in traced.log.read_text().splitlines()]
    about = [line for line in lines if line["request_id"].startswith("order-66")]
    assert {line["logger"] for line in about} >= {"hagane.server.middleware", "hagane.engine.loop"}
    (access,) = [line for line in about if line["logger"] == "hagane.server.middleware"]
    assert (access["method"], access["path"]) == ("POST", "/v1/completions")
    assert access["status"] == 200
    # Probes come every few seconds; they are not worth a line.
    assert not [line for line in lines if "/health/" in line["message"]]


def test_a_path_cannot_forge_a_line(traced):
    httpx.get(f"{traced.url}/nothing%0aINFO%20forged")
    assert appears(traced, "/nothing%0aINFO%20forged")


def test_an_endpoint_without_the_sdk_is_refused(tmp_path):
    blocked = tmp_path / "opentelemetry_sdk_is_missing"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(
        "import sys\nsys.modules['opentelemetry.sdk.trace'] = None\n"
    )
    result = hagane(
        "serve", "--port", "0",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", PYTHONPATH=f"{blocked}:.",
    )  # fmt: skip
    assert result.returncode == 2
    assert "-m pip install" in result.stderr
    assert "opentelemetry-sdk" in result.stderr


@pytest.mark.parametrize("begun", [False, True])
async def test_a_fault_of_the_program_is_answered_unless_an_answer_has_begun(begun):
    """By an exception that gets as far as the server, the connection would end."""
    requests = Counter("requests", "", ["method", "route", "status"], registry=CollectorRegistry())
    sent = []

    async def send(message):
        sent.append(message)

    async def faulty(scope, receive, send):
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError

    context = RequestContext(faulty, metrics=SimpleNamespace(http_requests=requests))
    scope = {"type": "http", "method": "GET", "path": "/x", "raw_path": b"/x", "headers": []}
    if begun:
        with pytest.raises(RuntimeError):
            await context(scope, None, send)
    else:
        await context(scope, None, send)
        assert b"Internal error" in sent[-1]["body"]
    assert [m["status"] for m in sent if "status" in m] == [200 if begun else 500]
    (counted, _) = next(iter(requests.collect())).samples
    assert (counted.labels["status"], counted.value) == ("200" if begun else "500", 1)
