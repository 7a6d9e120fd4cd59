"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from hagane.api.access import guarded_router
from hagane.api.serving import Serving, get_serving
from hagane.models.config import ModelConfig
from hagane.store.catalogue import ModelRef
from hagane.weights.sources.config import load_any_config

router = guarded_router()


@router.get("/v1/models")
def list_models(request: Request) -> dict[str, Any]:
    """Every model that requests may name. Raises EngineUnavailableError while they would fail."""
    serving = get_serving(request)
    serving.require_engine()
    models = [serving.base, *serving.catalogue.list()]
    described = [describe_model(serving, model) for model in models]
    if "anthropic-version" in request.headers:
        return _anthropic_list(described)
    return {"object": "list", "data": described}


def _anthropic_list(models: list[dict[str, Any]]) -> dict[str, Any]:
    """The models as Anthropic's clients expect them, all on one page."""
    data = [
        {
            "type": "model",
            "id": model["id"],
            "display_name": model["id"],
            "created_at": datetime.fromtimestamp(model["created"], UTC).isoformat(),
        }
        for model in models
    ]
    return {
        "data": data,
        "has_more": False,
        "first_id": data[0]["id"],
        "last_id": data[-1]["id"],
    }


@router.get("/v1/models/{model_id:path}")
async def get_model(model_id: str, request: Request) -> dict[str, Any]:
    """One model. Raises ModelNotFoundError, or EngineUnavailableError while requests would fail."""
    serving = get_serving(request)
    serving.require_engine()
    model = await serving.find_ref(model_id)
    return {**await run_in_threadpool(describe_model, serving, model), "id": model_id}


def describe_model(serving: Serving, model: ModelRef) -> dict[str, Any]:
    """`root` is what the weights are, `parent` what they, or an alias, stand on.

    `runs_through` transformers does a model of an undeclared family, which is slower.
    """
    whole = model.model_directory
    config = serving.model.config if whole is None else load_any_config(whole)
    stands_alone = model.digest is not None or whole is not None
    parent = serving.model.id if whole is None else model.root
    foreign = isinstance(config, ModelConfig) and not config.declared
    return {
        "id": model.id,
        "object": "model",
        "created": model.created or serving.model.created,
        "owned_by": "hagane",
        "root": model.id if stands_alone else model.root,
        "parent": None if parent == model.id else parent,
        "max_model_len": serving.context_length(config),
        **({"runs_through": "transformers"} if foreign else {}),
    }
