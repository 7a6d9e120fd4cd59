"""Every setting of the server: the same name as a flag, an environment variable and a TOML key.

Flags win over `HAGANE_*` variables, these over the file named by `HAGANE_CONFIG`, these over the
defaults.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, ByteSize, Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from hagane.system.errors import ConfigurationError
from hagane.system.weight_formats import FormatChoice

PREFIX = "HAGANE_"
CONFIG_VARIABLE = "HAGANE_CONFIG"

ToolFormatName = Literal[
    "harmony", "kimi", "deepseek", "qwen3-coder", "glm4", "hermes", "phi4-mini", "granite",
    "mistral", "llama4", "llama3", "pythonic", "gemma3",
]  # fmt: skip


class Settings(BaseSettings):
    """Serve a model over HTTP with the OpenAI API."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        extra="forbid",
    )

    model: str = Field("hagane-mini", description="directory, name in models_dir, or hub id")
    served_model_name: str | None = Field(None, description="id that requests name the model by")
    models_dir: Path | None = Field(
        None, description="model store, besides the built-in model; default: pulled in data_dir"
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="dtype of computation; auto: the model's own"
    )
    quantize: FormatChoice = Field("none", description="quantize weights")
    # Flags and variables are text, which a literal number would not be equal to.
    group_size: Annotated[Literal[32, 64, 128], BeforeValidator(int)] = Field(
        32, description="inputs per int4 scale"
    )
    context_length: int | None = Field(None, ge=1, description="tokens; default: the model's")
    kv_cache_dtype: Literal["auto", "model", "int8"] = Field(
        "auto",
        description="model: the model's own; int8 holds nearly twice the tokens (CPU kernels); "
        "auto: int8 for int8 and int4 weights on CPUs that are faster so",
    )
    kv_cache_memory: ByteSize | None = Field(
        None, description="memory of the KV cache such as 2GiB; default: up to half of what is free"
    )
    kv_cache_host_memory: ByteSize | None = Field(
        None,
        description="host memory for blocks that the KV cache has no room for; default: none, "
        "512MiB with kv_cache_disk",
    )
    kv_cache_disk: Path | None = Field(
        None,
        description="directory in which blocks of the KV cache outlive the server: others must not "
        "read it, it shows what users wrote",
    )
    kv_cache_disk_memory: ByteSize = Field(
        ByteSize(10 << 30), description="most bytes of kv_cache_disk for each model"
    )
    gpu_memory_fraction: float = Field(
        0.9,
        gt=0,
        le=1,
        description="part of a GPU's memory to use where kv_cache_memory is not set",
    )
    block_size: int = Field(
        16, ge=16, le=256, multiple_of=16, description="tokens per KV-cache block"
    )
    max_batch_tokens: int = Field(
        512,
        ge=1,
        description="token budget of one engine step; half of it for prompts, unless more of them "
        "wait than generate",
    )
    max_sequences: int = Field(64, ge=1, description="sequences generated at a time")
    max_waiting: int = Field(256, ge=1, description="waiting requests before 429")
    prefix_caching: bool = Field(True, description="reuse the KV cache of equal prompt beginnings")
    speculation: Literal["auto", "off", "lookup", "draft"] = Field(
        "auto",
        description="guess tokens, from what prompt and answer repeat (lookup) or by a smaller "
        "model (draft), verified so that answers stay the same bit for bit; auto: whatever pays, "
        "where the native CPU kernels run",
    )
    # Manifests give empty variables.
    draft_model: Annotated[str | None, BeforeValidator(lambda name: name or None)] = Field(
        None,
        description="small model with the vocabulary of `model` that guesses tokens for it: "
        "directory, name in models_dir, or hub id",
    )
    tool_format: ToolFormatName | None = Field(
        None,
        description="how models write tool calls; default: as their chat templates show",
    )
    threads: int | None = Field(None, ge=1, description="CPU threads; default: one per usable core")
    tensor_parallel: int = Field(1, ge=1, description="processes that compute a model together")
    api_keys: SecretStr = Field(
        SecretStr(""), description="comma-separated keys; empty: no key is required"
    )
    priority_keys: SecretStr = Field(
        SecretStr(""),
        description="comma-separated API keys whose requests may go before others' (priority below "
        "0), as the admin key's may; without api_keys everybody's may",
    )
    metrics_key: SecretStr = Field(
        SecretStr(""), description="key of /metrics; empty: no key is required"
    )
    allowed_hosts: str = Field(
        "",
        description="comma-separated host names that requests may be sent to (*.example.com for "
        "all below one, * for any), in addition to loopback names, the address listened on, this "
        "machine's name and IP addresses",
    )
    max_connections: int | None = Field(
        None,
        ge=1,
        description="connections at a time before 503; default: half of the file descriptors, "
        "512 at most",
    )
    max_header_bytes: ByteSize = Field(
        ByteSize(32 << 10), description="largest request line and headers together"
    )
    header_timeout: float = Field(
        10.0, gt=0, description="seconds until the headers of a request must have come"
    )
    body_timeout: float = Field(
        30.0, gt=0, description="seconds to wait for a body, and one more for every 32 KiB of it"
    )
    rate_limit_requests: int | None = Field(
        None, ge=1, description="requests a minute per API key before 429; default: no limit"
    )
    rate_limit_tokens: int | None = Field(
        None, ge=1, description="tokens a minute per API key before 429; default: no limit"
    )
    max_concurrent_requests: int | None = Field(
        None, ge=1, description="requests at a time per API key before 429; default: no limit"
    )
    models: list[str] = Field(
        [],
        description="NAME=MODEL of another model to serve, or MODEL alone: a directory, a name or "
        "a hub id; may be repeated. Those in models_dir are served by their names anyway",
    )
    adapter: list[str] = Field(
        [], description="NAME=PATH of a LoRA adapter to serve (PEFT's format); may be repeated"
    )
    adapter_memory: ByteSize = Field(
        ByteSize(1 << 30), description="memory of the LoRA adapters that are loaded at a time"
    )
    adapter_roots: str = Field(
        "",
        description="comma-separated directories, besides data_dir and models_dir, that adapters "
        "may be loaded from",
    )
    admin_key: SecretStr = Field(SecretStr(""), description="key of the admin routes")
    admin_host: str = Field("127.0.0.1", description="address of the admin listener")
    admin_port: int | None = Field(
        None, ge=0, le=65535, description="port of the admin routes; default: on the common one"
    )
    data_dir: Path = Field(Path("data"), description="directory of durable state")
    # Manifests give empty variables.
    database_url: Annotated[SecretStr | None, BeforeValidator(lambda url: url or None)] = Field(
        None,
        description="postgresql://USER:PASSWORD@HOST:PORT/DATABASE that several servers share; "
        "default: SQLite in data_dir",
    )
    blob_url: Annotated[str | None, BeforeValidator(lambda url: url or None)] = Field(
        None,
        description="directory or s3://BUCKET/PREFIX of the files and adapters that several "
        "servers share; default: data_dir",
    )
    stored_responses: ByteSize = Field(
        ByteSize(256 << 20),
        description="most memory of stored responses and conversations; the oldest go first",
    )
    stored_response_seconds: float = Field(
        30 * 86400.0, gt=0, description="until a stored response or conversation is forgotten"
    )
    fetch_hosts: str = Field(
        "",
        description="comma-separated hosts that the tool `fetch` may read (*.example.com for all "
        "below one, HOST:PORT for other ports than 80 and 443); a private address only where it, "
        "or a network such as 10.1.0.0/16, is among them; empty: there is no such tool",
    )
    mcp_servers: list[str] = Field(
        [],
        description="NAME=URL of an MCP server (Streamable HTTP) whose tools the chat page offers, "
        "with bearer=env:VARIABLE or HEADER=file:PATH after it where it wants a secret, "
        "or NAME=COMMAND ARGUMENT ... of a program that is started; may be repeated",
    )
    stored_chats: ByteSize = Field(
        ByteSize(0),
        description="most bytes of conversations that the chat page may keep here for each API "
        "key, if its user wants that; 0: they stay in browsers",
    )
    stored_chats_days: float = Field(
        365.0, gt=0, le=36500, description="days until one that nobody changes is deleted"
    )
    max_file_bytes: ByteSize = Field(ByteSize(512 << 20), description="largest uploaded file")
    key_file_bytes: ByteSize = Field(
        ByteSize(512 << 20),
        description="most bytes of the files of each API key, those for batches and their results; "
        "0: files and batches are for the admin key",
    )
    key_batches: int = Field(
        16, ge=1, description="batches of each API key that wait or run; more are refused with 429"
    )
    training_threads: int | None = Field(
        None, ge=1, description="CPU threads of a fine-tuning job; default: half of the cores"
    )
    job_gpu_memory_fraction: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="part of a GPU's memory that a job may take; the KV cache leaves it free",
    )
    job_checkpoints: int = Field(
        3,
        ge=1,
        description="checkpoints that a job keeps, the best and the last among them, besides those "
        "that were asked for by name",
    )
    stored_completions_bytes: ByteSize = Field(
        ByteSize(1 << 30),
        description="most bytes of the answers that clients store; the oldest go first",
    )
    stored_completions_days: float = Field(
        30.0, gt=0, le=36500, description="days until a stored answer is deleted"
    )
    resident_models: int = Field(
        1,
        ge=0,
        description="other models in memory at a time, next to the one of `model`",
    )
    resident_memory: ByteSize | None = Field(
        None, description="most memory of their weights together; default: what is free"
    )
    resident_cache_memory: ByteSize = Field(
        ByteSize(1 << 30), description="most memory of the KV cache of each of them"
    )
    resident_gpu_memory_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="part of a GPU's memory for each of them; the base's KV cache leaves it free",
    )
    resident_idle_seconds: float = Field(
        600.0, gt=0, description="idle time after which one is stopped"
    )
    engine_timeout: float = Field(
        30.0,
        gt=0,
        description="seconds of silence after which an engine is killed and started again; 20 "
        "times that while it loads",
    )
    request_timeout: float | None = Field(None, gt=0, description="seconds a request may take")
    max_body_bytes: ByteSize = Field(ByteSize(8 << 20), description="largest request body")
    cors_origins: str = Field("", description="comma-separated origins that browsers may call from")
    keep_alive_seconds: float = Field(15.0, gt=0, description="between comments on quiet streams")
    shutdown_grace: float = Field(10.0, ge=0, description="seconds streams may take to finish")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="verbosity")
    log_format: Literal["auto", "json", "pretty"] = Field(
        "auto", description="auto: pretty on a terminal, else json"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources = (init_settings, env_settings)
        file = os.environ.get(CONFIG_VARIABLE)
        if not file:
            return sources
        if not Path(file).is_file():
            raise ConfigurationError(f"{CONFIG_VARIABLE} names {file}, which does not exist")
        return (*sources, TomlConfigSettingsSource(settings_cls, Path(file)))

    @property
    def keys(self) -> tuple[str, ...]:
        """The API keys, one by one."""
        return _split(self.api_keys.get_secret_value())

    @property
    def urgent_keys(self) -> tuple[str, ...]:
        """The API keys whose requests may go before others'."""
        return _split(self.priority_keys.get_secret_value())

    @property
    def hosts(self) -> tuple[str, ...]:
        """The host names that requests may be sent to, one by one, in lower case."""
        return _split(self.allowed_hosts.lower())

    @property
    def fetched_hosts(self) -> tuple[str, ...]:
        """The hosts and networks that the tool `fetch` may read, one by one."""
        return _split(self.fetch_hosts)

    @property
    def adapters(self) -> dict[str, Path]:
        """Names and directories of the adapters to serve from the start."""
        pairs = [pair.partition("=") for pair in self.adapter]
        if wrong := [name for name, _, path in pairs if not (name and path)]:
            raise ConfigurationError(f"adapter {wrong[0]!r} is not of the form NAME=PATH")
        return {name: Path(path).expanduser().resolve() for name, _, path in pairs}

    @property
    def drafts(self) -> bool:
        """Whether a draft model guesses tokens."""
        return self.draft_model is not None and self.speculation != "off"

    @property
    def other_models(self) -> dict[str, str]:
        """What `models` names: directory, name or hub id by the name that requests use."""
        pairs = [entry.partition("=") for entry in self.models]
        found = {name if found else Path(name).name: path or name for name, found, path in pairs}
        if "" in found or len(found) < len(pairs):
            raise ConfigurationError(
                f"models {self.models}: every entry needs a name of its own, as NAME=MODEL"
            )
        return found

    @property
    def roots(self) -> tuple[Path, ...]:
        """The directories that adapters may be loaded from."""
        given = [Path(root).expanduser() for root in _split(self.adapter_roots)]
        return (self.data_dir, *([self.models_dir] if self.models_dir else ()), *given)

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins that browsers may call from, one by one."""
        return _split(self.cors_origins)


def refuse_unknown_variables() -> None:
    """Raises ConfigurationError for a HAGANE_* variable that is no setting: a typing mistake."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {CONFIG_VARIABLE}
    unknown = sorted(v for v in os.environ if v.upper().startswith(PREFIX) and v not in known)
    if not unknown:
        return
    near = difflib.get_close_matches(unknown[0].upper(), known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ";"
    raise ConfigurationError(f"{unknown[0]} is not a setting{hint} See `hagane serve --help`")


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
