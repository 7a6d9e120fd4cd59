"""How the help sorts the settings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# Headings of the help, and the settings below each.
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Model": ("model", "served_model_name", "models_dir", "device", "dtype", "quantize",
                  "group_size", "context_length", "tool_format", "threads",
                  "tensor_parallel"),
        "Memory and batching": ("kv_cache_dtype", "kv_cache_memory",
                                "kv_cache_host_memory", "kv_cache_disk", "kv_cache_disk_memory",
                                "gpu_memory_fraction", "block_size", "max_batch_tokens",
                                "max_sequences", "max_waiting",
                                "prefix_caching", "speculation", "draft_model",
                                "engine_timeout"),
        "Listening": ("host", "port", "admin_host", "admin_port", "allowed_hosts", "cors_origins",
                      "max_connections", "max_header_bytes", "header_timeout", "max_body_bytes",
                      "body_timeout", "request_timeout", "keep_alive_seconds", "shutdown_grace"),
        "Keys and limits": ("api_keys", "admin_key", "metrics_key", "priority_keys",
                            "rate_limit_requests", "rate_limit_tokens", "max_concurrent_requests"),
        "Adapters and other models": ("models", "adapter", "adapter_memory", "adapter_roots",
                                      "resident_models", "resident_memory", "resident_cache_memory",
                                      "resident_gpu_memory_fraction", "resident_idle_seconds"),
        "Files and training": ("data_dir", "database_url", "blob_url", "max_file_bytes",
                               "key_file_bytes", "key_batches",
                               "training_threads", "job_gpu_memory_fraction", "job_checkpoints",
                               "stored_completions_bytes", "stored_completions_days",
                               "stored_responses", "stored_response_seconds"),
        "Chat page": ("fetch_hosts", "mcp_servers", "stored_chats", "stored_chats_days"),
        "Logs": ("log_level", "log_format"),
    }
)  # fmt: skip
