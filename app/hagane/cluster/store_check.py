"""Whether the machines of a cluster can use its database and its objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from hagane.server.app import open_store
from hagane.system.errors import ConfigurationError
from hagane.system.settings import Settings

# A process of Ray's has to start there.
_PATIENCE_SECONDS = 120.0


def require_store(settings: Mapping[str, Any]) -> None:
    """Open the store of a server's settings on a machine of the cluster that Ray is connected to.

    This machine need not reach it. Nothing is opened where `settings` name no place that machines
    share. Raises ConfigurationError.
    """
    if not (settings.get("database_url") or settings.get("blob_url")):
        return
    # It only waits.
    opening = ray.remote(num_cpus=0)(fault_of).remote(dict(settings))
    try:
        fault = ray.get(opening, timeout=_PATIENCE_SECONDS)
    except GetTimeoutError:
        raise ConfigurationError(
            f"no machine of the cluster has opened the store within {_PATIENCE_SECONDS:.0f} s: "
            "does `ray status` show one that is alive?"
        ) from None
    except RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ConfigurationError(
            f"a machine of the cluster cannot open the store: {reason}; is this release of Hagane "
            "installed there, with the extras cluster, postgres and s3?"
        ) from None
    if fault is not None:
        raise ConfigurationError(f"on a machine of the cluster: {fault}")


def fault_of(settings: Mapping[str, Any]) -> str | None:
    """Why the store cannot be used where this runs; None if it can."""
    try:
        open_store(Settings(**settings)).close()
    except ConfigurationError as error:
        return str(error)
    return None
