"""Dependencies of every route: the models' text sides, their engines, the metrics, the checks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from fastapi import Request

from hagane.api.answers import AnswerLog
from hagane.api.background import BackgroundRuns
from hagane.api.canaries import CanaryWatch
from hagane.api.keyring import KeyRing
from hagane.api.limits import Account, Accounts
from hagane.api.load_history import LoadHistory
from hagane.api.metrics import Metrics
from hagane.api.model_pulls import ModelPulls
from hagane.api.offload import Offload
from hagane.api.owners import FileAllowance
from hagane.api.shared_state import SharedState
from hagane.data.pdf import PdfReader
from hagane.generation.grammars import GrammarChecker
from hagane.generation.request import find_room, overflow
from hagane.models.config import ModelConfig
from hagane.models.encoder_config import EncoderConfig
from hagane.pool.client import EngineClient
from hagane.pool.models import Fleet
from hagane.store.catalogue import Catalogue, ModelRef
from hagane.store.store import Store
from hagane.system.errors import (
    EngineUnavailableError,
    InvalidRequestError,
    ModelNotFoundError,
    RateLimitError,
)
from hagane.system.loops import BackgroundLoop
from hagane.system.sandbox import shared_sandbox
from hagane.system.settings import Settings
from hagane.text.chat_template import ChatTemplate
from hagane.text.embedding_style import EmbeddingStyle
from hagane.text.generation_defaults import GenerationDefaults
from hagane.text.tokenizer import Tokenizer
from hagane.toolbox.toolbox import Toolbox
from hagane.training.exports.queue import ExportQueue
from hagane.weights.sources.config import load_config, model_name


@dataclass(frozen=True)
class TextModel:
    """A model's text side: everything but the weights."""

    id: str
    directory: Path
    config: ModelConfig | EncoderConfig
    tokenizer: Tokenizer
    template: ChatTemplate | None
    defaults: GenerationDefaults
    embedding: EmbeddingStyle
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def encodes(self) -> bool:
        """Whether it makes embeddings alone, and no text."""
        return isinstance(self.config, EncoderConfig)

    @property
    def scores(self) -> bool:
        """Whether it scores pairs of texts, and does nothing else."""
        return isinstance(self.config, EncoderConfig) and self.config.scale is not None

    @cached_property
    def grammars(self) -> GrammarChecker:
        """Compiles grammars for this vocabulary; the first use takes up to a second."""
        return GrammarChecker(self.directory)

    @classmethod
    def load(cls, directory: Path, name: str | None) -> TextModel:
        """Raises ModelError naming the file at fault."""
        # Starts while the tokenizer is read; the chat template runs there.
        shared_sandbox().warm()
        encoder = EncoderConfig.find(directory)
        if encoder is not None:
            return cls._load_encoder(directory, name, encoder)
        config = load_config(directory)
        tokenizer = Tokenizer.load(directory)
        template = ChatTemplate.load(directory, tokenizer)
        return cls(
            id=name or model_name(directory),
            directory=directory,
            config=config,
            tokenizer=tokenizer,
            template=template,
            defaults=GenerationDefaults.load(directory, tokenizer, config, template),
            embedding=EmbeddingStyle.load(directory, default="last"),
        )

    @classmethod
    def _load_encoder(cls, directory: Path, name: str | None, config: EncoderConfig) -> TextModel:
        return cls(
            id=name or model_name(directory),
            directory=directory,
            config=config,
            tokenizer=Tokenizer.load(directory),
            template=None,
            defaults=GenerationDefaults(),
            embedding=(
                EmbeddingStyle.load(directory, default="mean", dense=True)
                if config.scale is None
                else EmbeddingStyle("score", normalize=False)
            ),
        )


# Longer texts are worth a count of their beginning before all of it is encoded.
_CHARACTERS_PER_TOKEN = 8
_RESOLVING_THREADS = 32
# Text sides of standalone models, whose directories never change.
_load_text = lru_cache(maxsize=8)(TextModel.load)


@dataclass(frozen=True)
class ResolvedModel:
    """The model of one request: its weights, its text side, and its longest context in tokens."""

    ref: ModelRef
    text: TextModel
    context_length: int

    def encode(
        self, text: str, param: str, *, wanted: int | None, add_special_tokens: bool = True
    ) -> list[int]:
        """Token ids of `text`, which takes time; one that is far too long is not read to its end.

        Raises ContextLengthError for such a text, naming the field `param`.
        """
        limit = self.context_length
        if len(text) > _CHARACTERS_PER_TOKEN * limit:
            least = self.text.tokenizer.least_tokens(text, limit)
            if least > limit:
                raise overflow(least, wanted, context_length=limit, param=param, least=True)
        return self.text.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def require_size(self, characters: int, turns: int, param: str) -> None:
        """Raises ContextLengthError for a conversation that cannot fit, whatever its text."""
        longest = self.text.tokenizer.longest_token
        least = max(turns, characters // longest if longest else 0)
        if least > self.context_length:
            raise overflow(least, None, context_length=self.context_length, param=param, least=True)

    def find_room(self, prompt: Sequence[int], wanted: int | None, param: str) -> int:
        """Room for new tokens, in tokens: `wanted`, or all that is left when that is None.

        Raises ContextLengthError with both numbers, InvalidRequestError for unusable prompts.
        """
        self.require_known(prompt, param)
        limit = self.context_length
        return find_room(len(prompt), wanted, context_length=limit, param=param)

    def require_known(self, prompt: Sequence[int], param: str) -> None:
        """Raises InvalidRequestError for a token that the model has not."""
        vocab_size = self.text.config.vocab_size
        if prompt and (largest := max(prompt)) >= vocab_size:
            raise InvalidRequestError(
                f"Token id {largest} is outside the vocabulary of {vocab_size} tokens.",
                param=param,
            )


@dataclass(frozen=True)
class Serving:
    """One application's parts, kept in `app.state.serving`."""

    settings: Settings
    model: TextModel
    fleet: Fleet
    metrics: Metrics
    accounts: Accounts
    keys: KeyRing
    store: Store
    catalogue: Catalogue
    answers: AnswerLog
    canaries: CanaryWatch
    shared: SharedState
    history: LoadHistory
    exports: ExportQueue
    toolbox: Toolbox
    loops: Callable[[], Iterable[BackgroundLoop]]
    offload: Offload = field(default_factory=Offload)
    runs: BackgroundRuns = field(default_factory=BackgroundRuns)
    pulls: ModelPulls = field(default_factory=ModelPulls)
    pdfs: PdfReader = field(default_factory=PdfReader)

    @cached_property
    def file_room(self) -> FileAllowance:
        """What each key's files may take."""
        return FileAllowance(self.store.files, int(self.settings.key_file_bytes))

    @cached_property
    def resolving(self) -> Executor | None:
        """Where names are looked up: the common threads, unless that may fetch adapters.

        Slow downloads keep nothing else from its threads.
        """
        if self.store.adapters is None:
            return None
        return ThreadPoolExecutor(_RESOLVING_THREADS, "resolve")

    @property
    def client(self) -> EngineClient:
        """The default model's engine, which runs its adapters too."""
        return self.fleet.base

    @property
    def base(self) -> ModelRef:
        """The default model itself."""
        return ModelRef(self.model.id, self.model.id, None, None, self.model.created)

    async def find_ref(self, name: str) -> ModelRef:
        """Find the default model, an adapter, a standalone model, or what an alias stands for.

        Known names are found without the database. Raises ModelNotFoundError.
        """
        found = self.base if name == self.model.id else self.catalogue.lookup(name)
        if found is None:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self.resolving, self.catalogue.resolve, name)
        if found is None:
            raise ModelNotFoundError(
                f"The model '{name}' does not exist here; this server has '{self.model.id}' and "
                "those that GET /v1/models lists.",
                param="model",
            )
        return found

    async def resolve(self, name: str) -> ResolvedModel:
        """As `find_ref`, with the text side. Raises ModelError for files that cannot be read."""
        ref = await self.find_ref(name)
        text = self.model
        if ref.model_directory is not None:
            text = await asyncio.to_thread(_load_text, ref.model_directory, _model_name(ref))
        return ResolvedModel(ref, text, self.context_length(text.config))

    def context_length(self, config: ModelConfig | EncoderConfig) -> int:
        """The most tokens of a prompt and its continuation."""
        longest = config.max_position_embeddings
        return min(self.settings.context_length or longest, longest)

    def require_engine(self) -> None:
        """Raises EngineUnavailableError unless the base's engine takes requests."""
        state = self.client.state
        if state != "ready":
            raise EngineUnavailableError(f"The engine is {state}; try again in a moment.")

    def engine(self, ref: ModelRef) -> AbstractAsyncContextManager[EngineClient]:
        """The engine that runs `ref`, kept as long as the context is open.

        Raises EngineUnavailableError on entry.
        """
        return self.fleet.engine(_model_name(ref), ref.model_directory or self.model.directory)


def _model_name(ref: ModelRef) -> str:
    """The model whose engine runs `ref`: of an adapter, the one that it changes."""
    return ref.root if ref.digest else ref.id


def get_serving(request: Request) -> Serving:
    """Dependency of the routes that need a model."""
    serving: Serving = request.app.state.serving
    return serving


async def meter(request: Request) -> AsyncIterator[Account]:
    """Dependency of the routes that generate: the key's account, while the request lasts.

    Raises RateLimitError.
    """
    account = get_serving(request).accounts[request.state.key_label]
    try:
        with account.request():
            request.state.headers = account.headers()
            yield account
    except RateLimitError:
        request.state.headers = account.headers()
        raise
