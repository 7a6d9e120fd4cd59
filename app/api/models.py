"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request

from app.api.serving import Serving, authenticate, get_serving

router = APIRouter(dependencies=[Depends(authenticate)])


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """Every model that requests may name."""
    return {"object": "list", "data": [_describe(get_serving(request))]}


@router.get("/v1/models/{model_id:path}")
async def get_model(model_id: str, request: Request) -> dict[str, Any]:
    """One model. Raises ModelNotFoundError."""
    serving = get_serving(request)
    serving.require_model(model_id)
    return _describe(serving)


def _describe(serving: Serving) -> dict[str, Any]:
    return {
        "id": serving.model.id,
        "object": "model",
        "created": serving.model.created,
        "owned_by": "hagane",
        "max_model_len": serving.context_length,
    }
