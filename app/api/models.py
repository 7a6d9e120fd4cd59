"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request

from app.api.serving import Serving, authenticate, get_serving
from app.store.catalogue import Served

router = APIRouter(dependencies=[Depends(authenticate)])


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """Every model that requests may name."""
    serving = get_serving(request)
    models = [serving.base, *serving.catalogue.list()]
    return {"object": "list", "data": [describe_model(serving, model) for model in models]}


@router.get("/v1/models/{model_id:path}")
async def get_model(model_id: str, request: Request) -> dict[str, Any]:
    """One model. Raises ModelNotFoundError."""
    serving = get_serving(request)
    return {**describe_model(serving, serving.resolve(model_id)), "id": model_id}


def describe_model(serving: Serving, model: Served) -> dict[str, Any]:
    """`root` is what the weights are, `parent` what an adapter or an alias stands on."""
    is_base = model.id == serving.model.id
    return {
        "id": model.id,
        "object": "model",
        "created": model.created or serving.model.created,
        "owned_by": "hagane",
        "root": model.root if model.adapter_directory is None else model.id,
        "parent": None if is_base else serving.model.id,
        "max_model_len": serving.context_length,
    }
