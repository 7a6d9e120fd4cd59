"""The Ray Serve application: edges that speak HTTP, and a deployment of engines for each model.

`serve deploy` builds it by `import_path: hagane.cluster.application:build`, whose `args` are the
keys of a `ClusterConfig`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import ray
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hagane.cluster.config import ClusterConfig, Replicas
from hagane.cluster.connection import ClusterConnection, ReplicaReport
from hagane.cluster.edge_metrics import ClusterCollector, EdgeReport
from hagane.cluster.handle import HandleReplicas
from hagane.cluster.listener import Listener
from hagane.cluster.replica import EngineReplica
from hagane.cluster.replica_metrics import ReplicaCollector
from hagane.cluster.scaling import QUEUED_TOKENS, REQUESTS, LoadPolicy
from hagane.cluster.training import RayWorkers
from hagane.cluster.version import ModelVersion
from hagane.pool.messages import CheckAdapter, EngineConfig
from hagane.pool.process import EngineConnection
from hagane.server.app import create_app
from hagane.server.engine_config import engine_config
from hagane.store.adapters import CACHE_FOLDER, SharedAdapters
from hagane.system.errors import EngineUnavailableError
from hagane.system.logging import configure_logging
from hagane.system.settings import Settings
from hagane.text.hub import model_stores, resolve_model

logger = logging.getLogger(__name__)

_EDGE = "edge"
# Requests on their way through one edge.
_MOST_AT_AN_EDGE = 1000
_MOST_CALLS = 100
# Replicas' figures are averaged over these.
_LOOK_BACK_SECONDS = 12.0
# For one answer to Prometheus, which by default gives up after ten.
_SCRAPE_SECONDS = 3.0
# After its requests a replica ends its engine.
_STOP_SECONDS = 15.0
# Edges log each request themselves.
_QUIET = LoggingConfig(enable_access_log=False, log_level="WARNING")
_ROUTER = "hagane.cluster.ray_router:PrefixRouter"
_encode = msgspec.msgpack.encode
_decode_edge = msgspec.msgpack.Decoder(EdgeReport).decode


class Engines:
    """A deployment's replica: Serve's side of an `EngineReplica`. Messages are MessagePack."""

    async def __init__(  # type: ignore[misc]
        self, settings: Mapping[str, Any], model: str, drain_seconds: float
    ) -> None:
        own = Settings(**{**settings, "model": model})
        configure_logging(own.log_level, own.log_format)
        directory = resolve_model(own.model, model_stores(own))
        self._version = ModelVersion.of(own.model, Path(directory))
        self._drain_seconds = drain_seconds
        adapters = None
        if own.blob_url is not None:
            from hagane.store.blobs import Blobs

            folder = own.data_dir.absolute() / CACHE_FOLDER
            adapters = SharedAdapters(Blobs(own.blob_url), folder)
        name = serve.get_replica_context().replica_id.unique_id
        self._replica = EngineReplica(name, engine_config(own, str(directory)), adapters)
        self._listener = Listener(self._replica)
        await self._replica.start()
        self._address = await self._listener.open(ray.util.get_node_ip_address())

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What there is to do, for `LoadPolicy`."""
        return {QUEUED_TOKENS: self._listener.queued_tokens, REQUESTS: self._listener.requests}

    async def record_replica_metadata(self) -> dict[str, Any]:
        """What routers know of this replica: where it listens, and its model."""
        parts = {"address": self._address, "model": self._version}
        return {name: msgspec.to_builtins(part) for name, part in parts.items()}

    async def report(self) -> bytes:
        """As `EngineReplica.report`."""
        return _encode(self._replica.report(self._listener.queued_tokens))

    async def check_adapter(self, request: bytes) -> bytes:
        """As `EngineReplica.check_adapter`."""
        decoded = msgspec.msgpack.decode(request, type=CheckAdapter)
        return _encode(await self._replica.check_adapter(decoded))

    async def check_health(self) -> None:
        """Raises where Serve shall replace this replica."""
        self._replica.require_health()

    async def __del__(self) -> None:
        await self._listener.drain(self._drain_seconds)
        await self._listener.close()
        await self._replica.stop()


class Edge:
    """The HTTP side: the application of `hagane serve`, whose engines are elsewhere."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        base: DeploymentHandle,
        others: Mapping[str, DeploymentHandle],
        training: Mapping[str, Any] | None = None,
    ) -> None:
        self._settings, self._training = Settings(**settings), training
        configure_logging(self._settings.log_level, self._settings.log_format)
        named = self._settings.other_models
        served = [(self._settings.model, base), *((named[name], others[name]) for name in others)]
        self._handles: dict[Path, tuple[DeploymentHandle, ModelVersion]] = {}
        for model, handle in served:
            directory = Path(resolve_model(model, model_stores(self._settings)))
            self._handles[directory] = handle, ModelVersion.of(model, directory)
        self._connections: dict[Path, ClusterConnection] = {}
        context = serve.get_replica_context()
        self._name, self._application = context.replica_id.unique_id, context.app_name
        self._figures = CollectorRegistry()
        self._edges: DeploymentHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failed = False

    def __serve_build_asgi_app__(self) -> ASGIApp:
        workers = None if self._training is None else RayWorkers(**self._training)
        app = create_app(self._settings, self._give_up, connect=self._connect, workers=workers)
        metrics = app.state.metrics
        self._figures = metrics.own
        replicas = ReplicaCollector(lambda: self._reports(app))
        metrics.exposed = ClusterCollector(self._all_figures, metrics.shared, replicas)
        return started_when_ready(app)

    def _reports(self, app: FastAPI) -> dict[str, list[ReplicaReport]]:
        """What the replicas of each model said of themselves, by the model's name."""
        reports = {}
        for resident in app.state.serving.fleet.residents:
            connection = self._connections.get(Path(resident.client.config.model))
            reports[resident.name] = connection.reports if connection else []
        return reports

    async def figures(self) -> bytes:
        """What this edge counts, as an `EdgeReport`."""
        return _encode(EdgeReport.of(self._name, self._figures))

    def _all_figures(self) -> list[EdgeReport]:
        """What all edges count. The replicas' figures are renewed; for another thread."""
        if self._loop is None:
            return []
        return asyncio.run_coroutine_threadsafe(self._ask(), self._loop).result()

    async def _ask(self) -> list[EdgeReport]:
        async with asyncio.TaskGroup() as group:
            others = group.create_task(self._other_edges())
            for connection in self._connections.values():
                group.create_task(connection.refresh(_SCRAPE_SECONDS))
        return [EdgeReport.of(self._name, self._figures), *others.result()]

    async def _other_edges(self) -> list[EdgeReport]:
        """What the other edges count: all of them, or none where one does not answer in time."""
        if self._edges is None:
            self._edges = serve.get_deployment_handle(_EDGE, self._application)
        try:
            async with asyncio.timeout(_SCRAPE_SECONDS):
                figures = self._edges.broadcast("figures")
                answers = await figures.results_async(return_exceptions=True)
            reports = [_decode_edge(answer) for answer in answers if isinstance(answer, bytes)]
        except Exception as error:
            logger.warning("the figures of other edges are missing: %r", error)
            return []
        return [report for report in reports if report.edge != self._name]

    async def _connect(self, config: EngineConfig) -> EngineConnection:
        served = self._handles.get(Path(config.model))
        if served is None:
            raise EngineUnavailableError("The cluster has no replicas of this model.")
        self._loop = asyncio.get_running_loop()
        connection = ClusterConnection(HandleReplicas(*served))
        self._connections[Path(config.model)] = connection
        return connection

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
    training = config.training
    workers = training and {"most": training.tasks, "cpus": training.cpus, "gpus": training.gpus}
    return edge.bind(settings, base, others, workers)


def _engines(
    name: str,
    wanted: Replicas,
    settings: Mapping[str, Any],
    model: str,
    routing: str,
    checked: Settings,
) -> serve.Application:
    deployment = serve.deployment(Engines).options(
        name=name,
        # Of Serve's own calls, such as reports: requests go to the replica directly.
        max_ongoing_requests=_MOST_CALLS,
        ray_actor_options={"num_cpus": wanted.cpus, "num_gpus": wanted.gpus},
        graceful_shutdown_timeout_s=wanted.drain_seconds + _STOP_SECONDS,
        health_check_period_s=5,
        logging_config=_QUIET,
        request_router_config=RequestRouterConfig(
            request_router_class=_ROUTER, request_router_kwargs={"routing": routing}
        ),
        **_scaling(wanted),
    )
    return deployment.bind(settings, model, wanted.drain_seconds)


def _scaling(wanted: Replicas) -> dict[str, Any]:
    """The options of a deployment that say how many replicas there are."""
    if wanted.most is None:
        return {"num_replicas": wanted.replicas}
    policy = AutoscalingPolicy(
        policy_function=LoadPolicy,
        policy_kwargs={
            "queued_tokens": wanted.target_queued_tokens,
            "requests": wanted.target_requests,
        },
    )
    scaling = AutoscalingConfig(
        min_replicas=wanted.replicas,
        max_replicas=wanted.most,
        look_back_period_s=_LOOK_BACK_SECONDS,
        upscale_delay_s=wanted.scale_up_seconds,
        downscale_delay_s=wanted.scale_down_seconds,
        policy=policy,
    )
    return {"autoscaling_config": scaling}
