"""`hagane cluster`: serve on a Ray cluster, or on one that is started on this machine."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from hagane.cli.command import Options, read
from hagane.cluster.config import ClusterConfig
from hagane.server.app import open_store
from hagane.system.errors import ConfigurationError
from hagane.system.installation import install_command
from hagane.system.settings import CONFIG_VARIABLE, PREFIX, Settings, refuse_unknown_variables

_APPLICATION = "hagane"
# Of Ray, for a cluster that is started here. Nothing of ours blocks an event loop, so that threads
# of their own for the router and for our code only cost their switches. Ray's HAProxy talks to the
# edges by HTTP, where its proxy in Python would send each piece of a stream as a message of Ray's.
RAY_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
}
_BUILDER = "hagane.cluster.application:build"


class ClusterOptions(Options):
    """Serve on a Ray cluster, with replicas of each model.

    CONFIG is a TOML file: the settings of `hagane serve`, edges that speak HTTP, and engines.
    """

    action: CliPositionalArg[Literal["serve", "config"]] = Field(
        description="serve until a signal; config prints the file that `serve deploy` takes"
    )
    config: CliPositionalArg[Path] = Field(description="the cluster's configuration")
    address: str | None = Field(
        None, description="of a Ray cluster; default: RAY_ADDRESS, else one on this machine"
    )


def run(arguments: list[str]) -> int:
    """Run the command. Raises ConfigurationError."""
    options = read(ClusterOptions, arguments, "cluster")
    refuse_unknown_variables()
    cluster = ClusterConfig.read(options.config)
    given = {**_variables(), **cluster.settings}
    cluster = ClusterConfig.of(cluster.model_dump() | {"settings": given}, str(options.config))
    settings = Settings(**given)
    if options.action == "config":
        # JSON is YAML. Secrets stay in the environment of the pods.
        written = ClusterConfig.read(options.config)
        print(json.dumps(_deployment(written, settings), indent=2))
        return 0
    _serve(cluster, settings, options.address or os.environ.get("RAY_ADDRESS"))
    return 0


def _variables() -> dict[str, str]:
    """The settings that the environment has: replicas on other machines do not see it."""
    return {
        name.removeprefix(PREFIX).lower(): value
        for name, value in os.environ.items()
        if name.startswith(PREFIX) and name != CONFIG_VARIABLE
    }


def _http(settings: Settings) -> dict[str, Any]:
    return {"host": settings.host, "port": settings.port, "request_timeout_s": None}


def _deployment(cluster: ClusterConfig, settings: Settings) -> dict[str, Any]:
    """The config file of `serve deploy`."""
    http = {**_http(settings), "host": "0.0.0.0"}  # noqa: S104 - of the pods that Ray runs in
    application = {
        "name": _APPLICATION,
        "route_prefix": "/",
        "import_path": _BUILDER,
        "args": cluster.model_dump(mode="json", exclude_unset=True),
    }
    return {"proxy_location": "EveryNode", "http_options": http, "applications": [application]}


def _serve(cluster: ClusterConfig, settings: Settings, address: str | None) -> None:
    # Where edges would fail one after the other: a database or objects that cannot be used.
    if address is None:
        open_store(settings).close()
    for name, value in RAY_VARIABLES.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        from ray import serve
    except ImportError:
        raise ConfigurationError(
            f"hagane cluster needs Ray: {install_command('cluster')}"
        ) from None
    from hagane.cluster.application import build
    from hagane.cluster.store_check import require_store

    application = build(cluster.model_dump())
    stopped = threading.Event()
    local = {"num_cpus": cluster.local_cpus, "include_dashboard": False}
    try:
        ray.init(address=address, logging_level="warning", **({} if address else local))
    except ConnectionError as error:
        raise ConfigurationError(
            f"the Ray cluster at {address} cannot be reached: {error}"
        ) from None
    if address is not None:
        require_store(cluster.settings)
    # Only now: Ray sets handlers of its own.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    serve.start(proxy_location="EveryNode", http_options=_http(settings))
    serve.run(application, name=_APPLICATION, route_prefix="/")
    print(f"serving on http://{settings.host}:{settings.port}", flush=True)
    stopped.wait()
    serve.shutdown()
    ray.shutdown()
