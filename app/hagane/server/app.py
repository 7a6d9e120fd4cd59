"""Composition: the only place where settings, engine and HTTP meet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from hagane import __version__
from hagane.api import errors, metrics
from hagane.api.access import routes_of
from hagane.api.answers import AnswerLog
from hagane.api.anthropic import messages
from hagane.api.body import Arriving
from hagane.api.canaries import CanaryWatch
from hagane.api.eval_runs import EvalRunner
from hagane.api.hagane import (
    adapters,
    admin,
    admin_models,
    admin_page,
    admin_pulls,
    aliases,
    chats,
    datasets,
    documents,
    exports,
    feedback,
    health,
    keys,
    observation,
    openapi,
    pretraining,
    rerank,
    tokenize,
    tools,
    web,
)
from hagane.api.key_usage import KeyUsageLog
from hagane.api.keyring import KeyRing
from hagane.api.limits import ANONYMOUS, Accounts
from hagane.api.load_history import LoadHistory
from hagane.api.openai import (
    batches,
    chat,
    completions,
    conversations,
    embeddings,
    evals,
    files,
    fine_tuning,
    models,
    responses,
    stored_completions,
)
from hagane.api.openai.batch_runner import BatchRunner
from hagane.api.serving import Serving, TextModel
from hagane.api.shared_state import SharedState
from hagane.api.sse import ClientDisconnectedError
from hagane.lora.config import AdapterConfig, adapter_digest
from hagane.pool.launch import Launched
from hagane.pool.models import Fleet, Residency
from hagane.pool.process import Connect
from hagane.server.background_loops import BackgroundLoops
from hagane.server.engine_config import engine_config
from hagane.server.hosts import AllowedHosts
from hagane.server.housekeeping import housekeeping
from hagane.server.http_servers import AdminListener
from hagane.server.middleware import (
    HostGuard,
    LingeringClose,
    RequestContext,
    asked_by_machines,
)
from hagane.store.answers.completions import StorageBounds
from hagane.store.catalogue import Catalogue
from hagane.store.keys import key_label
from hagane.store.offered import OfferedModels
from hagane.store.responses import Retention
from hagane.store.store import DATABASE_FILE, Store, StoreAddress
from hagane.system.errors import ConfigurationError, ModelError
from hagane.system.loops import BackgroundLoop
from hagane.system.settings import Settings
from hagane.text.hub import model_stores, own_store, resolve_model
from hagane.toolbox.toolbox import Toolbox
from hagane.training.exports.queue import ExportQueue
from hagane.training.jobs.options import JobOptions
from hagane.training.jobs.supervisor import Supervisor
from hagane.training.jobs.workers import Workers

logger = logging.getLogger(__name__)

# Which of their routes ask for which key is the table in `hagane.api.access`.
_RESOURCES = (
    chat, completions, responses, conversations, messages, embeddings, rerank, models, tokenize,
    tools, chats, documents, health, metrics, openapi, web, adapters, admin, admin_models,
    admin_pulls, admin_page, exports, observation, keys, aliases, files, batches, fine_tuning,
    pretraining, stored_completions, feedback, datasets, evals,
)  # fmt: skip

# In the data directory.
_EXPORTS_FOLDER = "exports"
# Reports on files at a time, each a process of its own; more of them wait.
_INSPECTIONS = 2


def create_app(
    settings: Settings,
    shut_down: Callable[[], None],
    launched: Launched | None = None,
    connect: Connect | None = None,
    workers: Workers | None = None,
) -> FastAPI:
    """The application that serves the model of `settings`; its engine runs while the app does.

    `shut_down` ends the server that runs the application: called when the engine cannot start.
    `launched` is the engine's process, where it is under way already; with `connect` the engines
    are a cluster's, with `workers` those that train.

    Raises ModelError or ConfigurationError for what can be known before the weights are loaded.
    """
    directory = resolve_model(settings.model, model_stores(settings))
    model = TextModel.load(directory, settings.served_model_name)
    config = engine_config(settings, str(directory))
    fleet = Fleet(model.id, config, residency(settings), launched, connect=connect)
    store = open_store(settings)
    supervisor = Supervisor(store, job_options(settings), workers=workers)

    recorded = metrics.Metrics(fleet, store.jobs, lambda: loops)
    accounts = Accounts(settings, recorded.own)
    catalogue = Catalogue(
        store.database, model.id, offered_models(settings, model.id), store.adapters
    )
    _register_adapters(catalogue, settings)
    answers = AnswerLog(
        store.answers, answer_bounds(settings), recorded.own, durable=store.durable,
        chats_seconds=settings.stored_chats_days * 86_400,
    )  # fmt: skip
    canaries = CanaryWatch(store.aliases, store.answers, recorded.own)
    keyring = KeyRing(settings, store.keys, accounts)
    place = None if store.address is None else store.address.directory
    serving = Serving(
        settings,
        model,
        fleet,
        recorded,
        accounts,
        keyring,
        store,
        catalogue,
        answers,
        canaries,
        SharedState(store, catalogue, keyring),
        LoadHistory(fleet.base, recorded, place),
        ExportQueue(None if place is None else place / _EXPORTS_FOLDER),
        Toolbox(settings.fetched_hosts, settings.mcp_servers),
        lambda: loops,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await loops.start()
        async with AsyncExitStack() as stack:
            if settings.admin_port is not None:
                listener = AdminListener(admin_app(app), settings)
                await stack.enter_async_context(listener.running())
            yield
        await loops.stop()

    app = _application(serving, admin=settings.admin_port is None, lifespan=lifespan)
    admin_key = settings.admin_key.get_secret_value()
    loops = BackgroundLoops(
        serving,
        supervisor,
        BackgroundLoop("announcements", partial(_announce, serving, shut_down)),
        BatchRunner(app, serving),
        EvalRunner(serving, accounts[key_label(admin_key) if admin_key else ANONYMOUS]),
        KeyUsageLog(accounts.usage, store.keys),
        housekeeping(store),
    )
    return app


def _register_adapters(catalogue: Catalogue, settings: Settings) -> None:
    """Those of the command line. Raises ModelError."""
    for name, path in settings.adapters.items():
        AdapterConfig.load(path)
        catalogue.register(name, path, adapter_digest(path), replace=True)


def admin_app(app: FastAPI) -> FastAPI:
    """The application of the admin listener: all routes, over the parts of the common one."""
    return _application(app.state.serving, admin=True)


def open_store(settings: Settings) -> Store:
    """The data directory, which is made where an admin key allows to fill it.

    Raises ConfigurationError when it cannot be used, or when the admin key may also chat.
    """
    key = settings.admin_key.get_secret_value()
    if key and key in settings.keys:
        raise ConfigurationError("admin_key is one of api_keys: who may chat must not administer")
    if set(settings.urgent_keys) - set(settings.keys):
        raise ConfigurationError("priority_keys has a key that api_keys lacks: add it there")
    retention = Retention(int(settings.stored_responses), settings.stored_response_seconds)
    url = settings.database_url
    used = (settings.data_dir / DATABASE_FILE).is_file()
    if not (key or url is not None or settings.stored_chats or used):
        return Store.empty(retention)
    if settings.blob_url is not None and url is None:
        raise ConfigurationError("blob_url is for servers that share a database: set database_url")
    shared = None if url is None else url.get_secret_value()
    return Store.open(StoreAddress(settings.data_dir, shared, settings.blob_url), retention)


def _prepare(model: TextModel) -> None:
    """Have a worker read the vocabulary, so that the first grammar does not wait for it.

    Requests with one are refused where that fails.
    """
    if model.encodes:
        return
    try:
        model.grammars.prepare()
    except ModelError as error:
        logger.warning("%s", error)


def _application(
    serving: Serving,
    *,
    admin: bool,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    settings = serving.settings
    app = FastAPI(
        title="Hagane",
        version=__version__,
        lifespan=lifespan,
        # These pages would load scripts from elsewhere; /openapi.json is a route of ours.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        # One span per request; `hagane.api.timeline` puts the phases of generation below it.
        telemetry={
            "operation_spans": False,
            "metrics": False,
            "logs": False,
            "exclude": asked_by_machines,
        },
    )
    app.state.serving = serving
    app.state.administered = admin
    app.state.metrics = serving.metrics
    app.state.arriving = Arriving()
    app.state.inspecting = asyncio.Semaphore(_INSPECTIONS)
    app.router.routes += routes_of((module.router for module in _RESOURCES), admin=admin)
    app.mount("/web", web.pages)
    errors.install(app)

    @app.exception_handler(ClientDisconnect)
    @app.exception_handler(ClientDisconnectedError)
    async def nobody_listens(*_: object) -> JSONResponse:
        return JSONResponse(None, 499)

    app.add_middleware(HostGuard, hosts=AllowedHosts.of(settings))
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    app.add_middleware(LingeringClose)
    app.add_middleware(RequestContext, metrics=serving.metrics)
    return app


async def _announce(serving: Serving, shut_down: Callable[[], None]) -> float:
    """Report once that the engine is ready; end the server when only the user can fix it."""
    client = serving.client
    if await client.reach("ready", "failed") == "failed":
        shut_down()
        await client.reach("stopped")
    else:
        logger.info(
            "%s is ready on http://%s:%d after %.2f s",
            serving.model.id,
            serving.settings.host,
            serving.settings.port,
            client.info.load_seconds if client.info else 0.0,
        )
        # Not before: a start has better use for the cores.
        await asyncio.to_thread(_prepare, serving.model)
        await client.reach("restarting", "failed", "stopped")
    return 0.0


def job_options(settings: Settings) -> JobOptions:
    """The part of the settings that the processes of jobs need."""
    return JobOptions(
        gpu_memory_fraction=settings.job_gpu_memory_fraction,
        kept_checkpoints=settings.job_checkpoints,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )


def answer_bounds(settings: Settings) -> StorageBounds:
    """The part of the settings that stored answers are bounded by."""
    seconds = settings.stored_completions_days * 86400
    return StorageBounds(int(settings.stored_completions_bytes), seconds)


def offered_models(settings: Settings, base: str) -> OfferedModels:
    """The models on disk that requests may name besides `base`.

    Raises ModelError for one that is not there, ConfigurationError for a name that is taken.
    """
    stores = model_stores(settings)
    named = {name: resolve_model(model, stores) for name, model in settings.other_models.items()}
    if base in named:
        raise ConfigurationError(f"models has the name {base!r}, which is that of `model`")
    return OfferedModels(named, own_store(settings))


def residency(settings: Settings) -> Residency:
    """The settings that bound standalone models."""
    return Residency(
        models=settings.resident_models,
        cache_bytes=int(settings.resident_cache_memory),
        gpu_memory_fraction=settings.resident_gpu_memory_fraction,
        idle_seconds=settings.resident_idle_seconds,
        weight_bytes=None if settings.resident_memory is None else int(settings.resident_memory),
    )
