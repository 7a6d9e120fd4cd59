"""The Ray Serve application: edges that speak HTTP, and a deployment of engines for each model.

`serve deploy` builds it by `import_path: hagane.cluster.application:build`, whose `args` are the
keys of a `ClusterConfig`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hagane.cluster.config import ClusterConfig, Replicas
from hagane.cluster.connection import ClusterConnection, Outcome, ReplicaReport
from hagane.cluster.replica import EngineReplica
from hagane.cluster.routing import RoutingHint
from hagane.pool.messages import AdapterChecked, CheckAdapter, EngineConfig, GenerateRequest
from hagane.pool.process import EngineConnection
from hagane.server.app import create_app
from hagane.server.engine_config import engine_config
from hagane.store.adapters import CACHE_FOLDER, SharedAdapters
from hagane.system.errors import EngineUnavailableError, QueueFullError
from hagane.system.logging import configure_logging
from hagane.system.settings import Settings
from hagane.text.hub import model_stores, resolve_model

logger = logging.getLogger(__name__)

_EDGE = "edge"
# Requests on their way through one edge.
_MOST_AT_AN_EDGE = 1000
# Edges log each request themselves.
_QUIET = LoggingConfig(enable_access_log=False, log_level="WARNING")
_ROUTER = "hagane.cluster.ray_router:PrefixRouter"
_decode_request = msgspec.msgpack.Decoder(GenerateRequest).decode
_decode_outcome = msgspec.msgpack.Decoder(Outcome).decode
_encode = msgspec.msgpack.encode


class Engines:
    """A deployment's replica: Serve's side of an `EngineReplica`. Messages are MessagePack."""

    async def __init__(self, settings: Mapping[str, Any], model: str) -> None:  # type: ignore[misc]
        own = Settings(**{**settings, "model": model})
        configure_logging(own.log_level, own.log_format)
        directory = resolve_model(own.model, model_stores(own))
        adapters = None
        if own.blob_url is not None:
            from hagane.store.blobs import Blobs

            folder = own.data_dir.absolute() / CACHE_FOLDER
            adapters = SharedAdapters(Blobs(own.blob_url), folder)
        name = serve.get_replica_context().replica_id.unique_id
        self._replica = EngineReplica(name, engine_config(own, str(directory)), adapters)
        await self._replica.start()

    async def generate(
        self, request: bytes, seconds: float | None, hint: RoutingHint | None = None
    ) -> AsyncGenerator[bytes, None]:
        """As `EngineReplica.generate`; `hint` is the router's."""
        async for outcome in self._replica.generate(_decode_request(request), seconds):
            yield _encode(outcome)

    async def report(self) -> bytes:
        """As `EngineReplica.report`."""
        return _encode(await self._replica.report())

    async def check_adapter(self, request: bytes) -> bytes:
        """As `EngineReplica.check_adapter`."""
        decoded = msgspec.msgpack.decode(request, type=CheckAdapter)
        return _encode(await self._replica.check_adapter(decoded))

    async def check_health(self) -> None:
        """Raises where Serve shall replace this replica."""
        self._replica.require_health()

    async def __del__(self) -> None:
        await self._replica.stop()


class HandleReplicas:
    """The replicas behind a handle of Serve's."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle, self._streams = handle, handle.options(stream=True)

    async def generate(
        self, request: GenerateRequest, seconds: float | None, hint: RoutingHint
    ) -> AsyncGenerator[Outcome, None]:
        """As `Replicas.generate`."""
        stream = self._streams.generate.remote(_encode(request), seconds, hint=hint)
        try:
            async for outcome in stream:
                yield _decode_outcome(outcome)
        except BackPressureError:
            message = "All replicas have as many requests as they take; try again in a moment."
            raise QueueFullError(message, retry_after=1.0) from None
        finally:
            # Does nothing to one that has ended.
            stream.cancel()

    async def report(self) -> ReplicaReport:
        """As `Replicas.report`."""
        return msgspec.msgpack.decode(await self._handle.report.remote(), type=ReplicaReport)

    async def check_adapter(self, request: CheckAdapter) -> AdapterChecked:
        """As `Replicas.check_adapter`."""
        answer = await self._handle.check_adapter.remote(_encode(request))
        return msgspec.msgpack.decode(answer, type=AdapterChecked)


class Edge:
    """The HTTP side: the application of `hagane serve`, whose engines are elsewhere."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        base: DeploymentHandle,
        others: Mapping[str, DeploymentHandle],
    ) -> None:
        self._settings = Settings(**settings)
        configure_logging(self._settings.log_level, self._settings.log_format)
        stores = model_stores(self._settings)
        directory = resolve_model(self._settings.model, stores)
        named = self._settings.other_models
        self._handles = {Path(directory): base} | {
            Path(resolve_model(named[name], stores)): handle for name, handle in others.items()
        }
        self._failed = False

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return started_when_ready(create_app(self._settings, self._give_up, connect=self._connect))

    async def _connect(self, config: EngineConfig) -> EngineConnection:
        handle = self._handles.get(Path(config.model))
        if handle is None:
            raise EngineUnavailableError("The cluster has no replicas of this model.")
        return ClusterConnection(HandleReplicas(handle))

    def _give_up(self) -> None:
        self._failed = True

    async def check_health(self) -> None:
        """Raises where Serve shall replace this replica."""
        if self._failed:
            raise EngineUnavailableError("The engines cannot start.")


def started_when_ready(app: FastAPI) -> ASGIApp:
    """`app`, whose start ends when its engines take requests: Serve sends it none before."""

    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_when_ready(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                await app.state.serving.client.reach("ready", "failed")
            await send(message)

        await app(scope, receive, send_when_ready if scope["type"] == "lifespan" else send)

    return waiting


def build(args: dict[str, Any]) -> serve.Application:
    """The application of a `ClusterConfig`. Raises ConfigurationError."""
    config = ClusterConfig.of(args, "args")
    settings = dict(config.settings)
    if config.models:
        settings["models"] = [f"{other.name}={other.model}" for other in config.models]
        settings["resident_models"] = len(config.models)
    # Checked here, where somebody reads the error.
    checked = Settings(**settings)
    base = _engines("engines", config.engines, settings, checked.model, config.routing, checked)
    # A draft shares the base's vocabulary, not every model's.
    alone = settings | {"draft_model": None}
    if checked.speculation == "draft":
        alone["speculation"] = "auto"
    others = {
        other.name: _engines(
            f"engines-{other.name}", other, alone, other.model, config.routing, checked
        )
        for other in config.models
    }
    edge = serve.deployment(serve.ingress()(Edge)).options(
        name=_EDGE,
        num_replicas=config.edges,
        max_ongoing_requests=_MOST_AT_AN_EDGE,
        ray_actor_options={"num_cpus": 1},
        logging_config=_QUIET,
        graceful_shutdown_timeout_s=config.engines.drain_seconds,
    )
    return edge.bind(settings, base, others)


def _engines(
    name: str,
    wanted: Replicas,
    settings: Mapping[str, Any],
    model: str,
    routing: str,
    checked: Settings,
) -> serve.Application:
    scaling: dict[str, Any] = {"num_replicas": wanted.replicas}
    if wanted.most is not None:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=wanted.replicas,
                max_replicas=wanted.most,
                target_ongoing_requests=wanted.target_requests,
            )
        }
    deployment = serve.deployment(Engines).options(
        name=name,
        # A replica queues and refuses by itself, as a server's engine does.
        max_ongoing_requests=checked.max_sequences + checked.max_waiting,
        max_queued_requests=checked.max_waiting,
        ray_actor_options={"num_cpus": wanted.cpus, "num_gpus": wanted.gpus},
        graceful_shutdown_timeout_s=wanted.drain_seconds,
        health_check_period_s=5,
        logging_config=_QUIET,
        request_router_config=RequestRouterConfig(
            request_router_class=_ROUTER, request_router_kwargs={"routing": routing}
        ),
        **scaling,
    )
    return deployment.bind(settings, model)
