"""The tiers below the KV cache, as the settings have them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from hagane import __version__
from hagane.engine.background_thread import BackgroundThread
from hagane.engine.cache.disk import DiskTier
from hagane.engine.cache.host import HostMemory
from hagane.engine.cache.identity import identity
from hagane.engine.cache.tiers import KVTiers
from hagane.engine.step.runner import ModelRunner
from hagane.pool.messages import EngineConfig
from hagane.system.errors import ConfigurationError

logger = logging.getLogger(__name__)

# What comes from disk passes through host memory: room for some prompts at a time.
_HOST_BYTES_FOR_DISK = 512 << 20


def make_tiers(
    config: EngineConfig, runner: ModelRunner, wake: Callable[[], None]
) -> KVTiers | None:
    """Host memory and disk for a runner's blocks, or None if neither is asked for.

    Raises ConfigurationError for settings that cannot work.
    """
    memory = config.kv_cache_host_memory
    if memory is None:
        memory = _HOST_BYTES_FOR_DISK if config.kv_cache_disk else 0
    if not (memory or config.kv_cache_disk):
        return None
    if not config.prefix_caching:
        raise ConfigurationError(
            "kv_cache_host_memory and kv_cache_disk keep what prompts share: they need "
            "prefix_caching"
        )
    host = HostMemory(memory, runner.block_bytes)
    disk = _open_disk(config, runner) if config.kv_cache_disk else None
    logger.info(
        "below the KV cache: %.1f MB of host memory, %s",
        memory / 1e6,
        "no disk" if disk is None else f"{len(disk)} blocks on disk in {disk.files.directory}",
    )
    return KVTiers(runner, host, disk, BackgroundThread("kv-tiers", wake))


def _open_disk(config: EngineConfig, runner: ModelRunner) -> DiskTier:
    numerics = (config.quantize, config.group_size, runner.dtype, runner.cache_dtype)
    shape = (runner.block_size, runner.model.caches)
    cuda = runner.device.type == "cuda"
    device = torch.cuda.get_device_name(runner.device) if cuda else runner.instructions
    build = (__version__, torch.__version__, runner.device.type, device)
    name = identity(Path(config.model), (*numerics, *shape, *build))
    root = Path(config.kv_cache_disk or "")
    return DiskTier(root, name, config.kv_cache_disk_memory, runner.block_bytes)
