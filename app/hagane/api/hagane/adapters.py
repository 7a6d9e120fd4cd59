"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter. Admin only."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from pydantic import Field

from hagane.api.access import guarded_router
from hagane.api.fields import Body, Flag, ModelName, Name
from hagane.api.openai.models import describe_model
from hagane.api.serving import Serving, get_serving
from hagane.lora.config import adapter_digest
from hagane.pool.messages import AdapterRef
from hagane.store.catalogue import ModelRef
from hagane.system.errors import InvalidRequestError, ModelError

router = guarded_router(prefix="/v1")


class LoadAdapterBody(Body):
    """A name for the adapter in a PEFT directory; `load_inplace` puts it in the place of another.

    A relative path is looked for in every directory that adapters may be loaded from. `base_model`
    is the model that it changes; default: the server's default model.
    """

    lora_name: Name
    lora_path: Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f]+$")]
    load_inplace: Flag = False
    base_model: ModelName | None = None


class UnloadAdapterBody(Body):
    # Jobs give names that nobody else may: with colons.
    lora_name: Annotated[str, Field(min_length=1, max_length=512)]


@router.post("/load_lora_adapter")
async def load(body: LoadAdapterBody, request: Request) -> dict[str, Any]:
    """Serve an adapter from now on, once the engine has found that it fits the model.

    Raises InvalidRequestError saying what is wrong with it, or ConflictError if the name is taken.
    """
    serving = get_serving(request)
    directory = await run_in_threadpool(_find, body.lora_path, serving)
    before = await run_in_threadpool(serving.store.artifacts.find, body.lora_name)
    base = await _base(serving, body.base_model)
    try:
        digest = await run_in_threadpool(adapter_digest, directory)
        async with serving.engine(base) as engine:
            await engine.check_adapter(AdapterRef(body.lora_name, str(directory), digest))
    except ModelError as error:
        raise InvalidRequestError(str(error), param="lora_path", code="invalid_adapter") from None
    register = partial(serving.catalogue.register, replace=body.load_inplace, base=base.id)
    ref = await run_in_threadpool(register, body.lora_name, directory, digest)
    if before is not None and before.digest != digest:
        serving.fleet.release_adapter(before.digest)
    return await run_in_threadpool(describe_model, serving, ref)


async def _base(serving: Serving, name: str | None) -> ModelRef:
    """Raises ModelNotFoundError, or InvalidRequestError for what is no model of its own."""
    if name is None or name == serving.model.id:
        return serving.base
    found = await serving.find_ref(name)
    if found.standalone and found.alias is None:
        return found
    raise InvalidRequestError(
        f"'{name}' is an adapter or an alias: 'base_model' is the model that an adapter changes.",
        param="base_model",
    )


@router.post("/unload_lora_adapter")
async def unload(body: UnloadAdapterBody, request: Request) -> dict[str, Any]:
    """Take no more requests for an adapter, wait for those that run, and free its memory.

    Its files stay. Raises ModelNotFoundError, or ConflictError while an alias points to it.
    """
    serving = get_serving(request)
    await run_in_threadpool(_require_adapter, serving, body.lora_name)
    removed = await run_in_threadpool(serving.store.artifacts.delete, body.lora_name)
    await serving.fleet.unload_adapter(removed.digest)
    await run_in_threadpool(serving.store.forget_adapters, [removed.digest])
    return {"id": body.lora_name, "object": "model", "deleted": True}


def _require_adapter(serving: Serving, name: str) -> None:
    found = serving.store.artifacts.find(name)
    if found is not None and found.standalone:
        raise InvalidRequestError(
            f"'{name}' is a standalone model, not an adapter: DELETE /v1/models/{name} removes it.",
            param="lora_name",
        )


def _find(path: str, serving: Serving) -> Path:
    """The directory `path`, links followed, inside one of those that adapters may come from."""
    roots = [root.resolve() for root in serving.settings.roots]
    for root in roots:
        # A zero byte, a part that is too long, or links in a circle: no directory either.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            directory = (root / path).resolve()
            if directory.is_dir() and directory.is_relative_to(root):
                return directory
    raise InvalidRequestError(
        f"'lora_path' is no directory in {' or '.join(map(str, roots))}; move the adapter there, "
        "or name its parent in adapter_roots.",
        param="lora_path",
    )
