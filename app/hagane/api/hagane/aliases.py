"""/admin/aliases and /admin/adapters: which name leads to which model. Admin only."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import Request
from pydantic import Field

from hagane.api.access import guarded_router
from hagane.api.fields import Body, Count, ModelName, Name, Number
from hagane.api.serving import Serving, get_serving
from hagane.evaluation.canary import CanaryPolicy
from hagane.store.aliases import AliasGeneration
from hagane.store.answers.canaries import Canary
from hagane.store.artifacts import ServedArtifact
from hagane.store.store import Store
from hagane.system.errors import ConflictError, InvalidRequestError, ModelNotFoundError

router = guarded_router(prefix="/admin")

# Below the largest integer of the database.
Generation = Annotated[Count, Field(ge=0, lt=1 << 63)]


class AliasBody(Body):
    """POST /admin/aliases: where the name leads, from the next request on."""

    name: Name
    target: ModelName
    candidate: ModelName | None = None
    percentage: Annotated[Number, Field(ge=0, le=100)] = 0.0
    expected_generation: Generation | None = None
    policy: CanaryPolicy | None = None


class RollbackBody(Body):
    """POST /admin/aliases/{name}/rollback: back to `generation`, or to the one before."""

    generation: Generation | None = None
    expected_generation: Generation | None = None


@router.post("/aliases")
def set_alias(body: AliasBody, request: Request) -> dict[str, Any]:
    """Point a name to a model, and a share of its requests to a candidate.

    Raises ModelNotFoundError, or ConflictError when another generation is in force.
    """
    serving = get_serving(request)
    if body.name == serving.model.id or serving.store.artifacts.find(body.name) is not None:
        raise ConflictError(f"'{body.name}' is a model's own name; choose another.", param="name")
    if body.percentage and body.candidate is None:
        raise InvalidRequestError("'percentage' needs a 'candidate'.", param="percentage")
    for param, model in (("target", body.target), ("candidate", body.candidate)):
        if model is not None:
            _require_model(serving, model, param)
    if body.policy is not None and (body.candidate is None or not 0 < body.percentage < 100):
        raise InvalidRequestError(
            "'policy' compares a 'candidate' with the target: give one, and a 'percentage' above 0 "
            "and below 100.",
            param="policy",
        )
    wanted = AliasGeneration(body.name, body.target, body.candidate, body.percentage)
    made = serving.store.aliases.set(wanted, body.expected_generation)
    canaries = serving.store.answers.canaries
    if body.policy is None or body.candidate is None:
        canaries.supersede(body.name)
    else:
        canaries.add(
            Canary(
                alias=body.name,
                generation=made.generation,
                target=body.target,
                candidate=body.candidate,
                policy=body.policy.model_dump(mode="json"),
            )
        )
    return _describe(made)


@router.get("/aliases")
def list_aliases(request: Request) -> dict[str, Any]:
    """Every alias as it is now."""
    aliases = get_serving(request).store.aliases.current()
    return {"object": "list", "data": [_describe(alias) for alias in aliases]}


@router.get("/aliases/{name:path}")
def get_alias(name: str, request: Request) -> dict[str, Any]:
    """One alias, all its generations, newest first, and its canary. Raises NotFoundError."""
    store = get_serving(request).store
    history = [_describe(generation) for generation in store.aliases.history(name)]
    canary = _describe_canary(store, store.answers.canaries.latest(name))
    return {**_describe(store.aliases.get(name)), "history": history, "canary": canary}


@router.post("/aliases/{name:path}/rollback")
def roll_back(name: str, request: Request, body: RollbackBody | None = None) -> dict[str, Any]:
    """Point the name where it pointed before. Raises NotFoundError or ConflictError."""
    asked = body or RollbackBody()
    aliases = get_serving(request).store.aliases
    return _describe(aliases.rollback(name, asked.generation, asked.expected_generation))


@router.delete("/aliases/{name:path}")
def delete_alias(name: str, request: Request) -> dict[str, Any]:
    """Raises NotFoundError."""
    get_serving(request).store.aliases.delete(name)
    return {"name": name, "object": "alias", "deleted": True}


@router.get("/adapters")
def list_adapters(request: Request) -> dict[str, Any]:
    """Every stored adapter and standalone model, promoted or not."""
    adapters = get_serving(request).store.artifacts.list()
    return {"object": "list", "data": [_adapter(stored) for stored in adapters]}


@router.post("/adapters/{name:path}/promote")
def promote(name: str, request: Request) -> dict[str, Any]:
    """Serve what was kept without being promoted. Raises ModelNotFoundError."""
    return _adapter(get_serving(request).store.artifacts.promote(name))


def _require_model(serving: Serving, model: str, param: str) -> None:
    if any(alias.name == model for alias in serving.store.aliases.current()):
        raise InvalidRequestError(
            f"'{model}' is an alias itself; name the model it leads to.", param=param
        )
    if model != serving.model.id and serving.catalogue.resolve(model) is None:
        raise ModelNotFoundError(f"The model '{model}' does not exist here.", param=param)


def _describe(alias: AliasGeneration) -> dict[str, Any]:
    return {
        "object": "alias",
        "name": alias.name,
        "target": alias.target,
        "candidate": alias.candidate,
        "percentage": alias.percentage,
        "generation": alias.generation,
        "created_at": alias.created_at,
    }


def _describe_canary(store: Store, canary: Canary | None) -> dict[str, Any] | None:
    if canary is None:
        return None
    events = [asdict(event) for event in store.answers.canaries.events(canary.id)]
    return {"object": "canary", **asdict(canary), "events": events}


def _adapter(stored: ServedArtifact) -> dict[str, Any]:
    return {
        "object": "model" if stored.standalone else "adapter",
        "name": stored.name,
        "base_model": stored.root,
        "directory": stored.directory,
        "digest": stored.digest,
        "promoted": stored.promoted,
        "job": stored.job,
        "created_at": stored.created_at,
    }
