"""The engine's config out of the settings. Imports little: an engine is launched with it first."""

from __future__ import annotations

from pathlib import Path

from hagane.pool.messages import EngineConfig
from hagane.system.errors import ConfigurationError
from hagane.system.settings import Settings
from hagane.text.hub import model_stores, resolve_model


def engine_config(settings: Settings, directory: str) -> EngineConfig:
    """The part of the settings that the engine process needs. Raises ModelError for its draft."""
    draft = settings.draft_model if settings.drafts else None
    return EngineConfig(
        model=directory,
        device=settings.device,
        dtype=settings.dtype,
        quantize=settings.quantize,
        group_size=settings.group_size,
        block_size=settings.block_size,
        context_length=settings.context_length,
        kv_cache_dtype=settings.kv_cache_dtype,
        kv_cache_memory=_bytes(settings.kv_cache_memory),
        kv_cache_host_memory=_bytes(settings.kv_cache_host_memory),
        kv_cache_disk=_path(settings.kv_cache_disk),
        kv_cache_disk_memory=int(settings.kv_cache_disk_memory),
        gpu_memory_fraction=_engine_share(settings),
        max_batch_tokens=max(settings.max_batch_tokens, settings.max_sequences),
        max_sequences=settings.max_sequences,
        max_waiting=settings.max_waiting,
        prefix_caching=settings.prefix_caching,
        speculation=settings.speculation,
        draft_model=draft and str(resolve_model(draft, model_stores(settings))),
        threads=settings.threads,
        tensor_parallel=settings.tensor_parallel,
        log_level=settings.log_level,
        log_format=settings.log_format,
        adapter_memory=int(settings.adapter_memory),
        timeout=settings.engine_timeout,
    )


def _bytes(size: int | None) -> int | None:
    # A plain number: messages know no ByteSize.
    return None if size is None else int(size)


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path.expanduser().resolve())


def _engine_share(settings: Settings) -> float:
    """The engine's share of a GPU's memory, less that of jobs and their standalone models.

    Raises ConfigurationError where nothing is left.
    """
    if not settings.admin_key.get_secret_value():
        return settings.gpu_memory_fraction
    models = settings.resident_models * settings.resident_gpu_memory_fraction
    left = 1 - settings.job_gpu_memory_fraction - models
    if left <= 0:
        raise ConfigurationError(
            f"resident_models {settings.resident_models} x resident_gpu_memory_fraction "
            f"{settings.resident_gpu_memory_fraction} and job_gpu_memory_fraction "
            f"{settings.job_gpu_memory_fraction} leave the base nothing of a GPU: lower one"
        )
    return min(settings.gpu_memory_fraction, left)
