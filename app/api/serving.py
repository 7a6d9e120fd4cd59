"""What every route needs: the served model's text side, the engine, the metrics, the checks."""

from __future__ import annotations

import hmac
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from app.api.errors import AuthenticationError, PermissionDeniedError
from app.api.limits import ANONYMOUS, Account, Accounts, key_label
from app.api.metrics import Metrics
from app.engine.client import EngineClient
from app.errors import (
    ContextLengthError,
    InvalidRequestError,
    ModelNotFoundError,
    RateLimitError,
)
from app.settings import Settings
from app.store.catalogue import Catalogue, Served
from app.store.store import Store
from app.transformer.chat_template import ChatTemplate
from app.transformer.config import ModelConfig
from app.transformer.generation_config import GenerationDefaults
from app.transformer.tokenizer import Tokenizer


@dataclass(frozen=True)
class ServedModel:
    """The model as its text side: everything but the weights."""

    id: str
    directory: Path
    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate | None
    defaults: GenerationDefaults
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def load(cls, directory: Path, name: str | None) -> ServedModel:
        """Raises ModelError naming the file at fault."""
        config = ModelConfig.load(directory)
        tokenizer = Tokenizer.load(directory)
        return cls(
            id=name or directory.name,
            directory=directory,
            config=config,
            tokenizer=tokenizer,
            template=ChatTemplate.load(directory, tokenizer),
            defaults=GenerationDefaults.load(directory, tokenizer, config),
        )


@dataclass(frozen=True)
class Serving:
    """One application's parts, kept in `app.state.serving`."""

    settings: Settings
    model: ServedModel
    client: EngineClient
    metrics: Metrics
    accounts: Accounts
    store: Store
    catalogue: Catalogue

    @property
    def context_length(self) -> int:
        return self.settings.context_length or self.model.config.max_position_embeddings

    @property
    def base(self) -> Served:
        """The model itself."""
        return Served(self.model.id, self.model.id, None, None, self.model.created)

    def resolve(self, name: str) -> Served:
        """What answers to `name`: the model, an adapter on it, or what an alias leads to.

        Raises ModelNotFoundError.
        """
        found = self.base if name == self.model.id else self.catalogue.resolve(name)
        if found is None:
            raise ModelNotFoundError(
                f"The model '{name}' does not exist here; this server has '{self.model.id}' and "
                "what GET /v1/models lists beside it.",
                param="model",
            )
        return found

    def check_prompt(self, prompt: list[int], wanted: int | None, param: str) -> int:
        """Room for new tokens, in tokens: `wanted`, or all that is left when that is None.

        Raises ContextLengthError with both numbers, InvalidRequestError for unusable prompts.
        """
        limit, length = self.context_length, len(prompt)
        if not prompt:
            raise InvalidRequestError(f"'{param}' has no tokens; send some text.", param=param)
        largest = max(prompt)
        if largest >= self.model.config.vocab_size:
            raise InvalidRequestError(
                f"Token id {largest} is outside the vocabulary of "
                f"{self.model.config.vocab_size} tokens.",
                param=param,
            )
        room = limit - length
        if room < max(wanted or 1, 1):
            asked = f" and {wanted} in the completion" if wanted else ""
            raise ContextLengthError(
                f"This model's maximum context length is {limit} tokens. However, you requested "
                f"{length + (wanted or 0)} tokens ({length} in the {param}{asked}). Shorten the "
                f"{param} or ask for fewer tokens.",
                param=param,
            )
        return room if wanted is None else wanted


def get_serving(request: Request) -> Serving:
    """Dependency of the routes that need a model."""
    serving: Serving = request.app.state.serving
    return serving


async def authenticate(request: Request) -> str:
    """Dependency of the /v1 routes: the label of a known key, where keys are configured.

    Raises AuthenticationError. Every key is compared, in constant time each.
    """
    settings = get_serving(request).settings
    if not settings.keys:
        return ANONYMOUS
    if not _holds(request, *settings.keys, settings.admin_key.get_secret_value()):
        raise _wrong_key()
    return key_label(_given(request))


async def meter(
    request: Request, label: Annotated[str, Depends(authenticate)]
) -> AsyncIterator[Account]:
    """Dependency of the routes that generate: the key's account, while the request lasts.

    Raises RateLimitError.
    """
    account = get_serving(request).accounts[label]
    try:
        with account.request():
            request.state.headers = account.headers()
            yield account
    except RateLimitError:
        request.state.headers = account.headers()
        raise


async def authenticate_admin(request: Request) -> None:
    """Dependency of the routes that change the server: the admin key and no other.

    Raises PermissionDeniedError while no admin key is configured, and for keys that may only chat.
    """
    settings = get_serving(request).settings
    key = settings.admin_key.get_secret_value()
    if not key:
        raise PermissionDeniedError(
            "The admin routes are closed: start the server with HAGANE_ADMIN_KEY to open them."
        )
    if _holds(request, key):
        return
    if _holds(request, *settings.keys):
        raise PermissionDeniedError("This key may chat; this route needs the admin key.")
    raise _wrong_key()


def _holds(request: Request, *keys: str) -> bool:
    given = _given(request).encode()
    matches = [hmac.compare_digest(given, key.encode()) for key in keys if key]
    return any(matches)


def _given(request: Request) -> str:
    """The bearer's key, or nothing."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return given if scheme.lower() == "bearer" else ""


def _wrong_key() -> AuthenticationError:
    return AuthenticationError(
        "Missing or incorrect API key: send 'Authorization: Bearer KEY' with a key of this server."
    )
