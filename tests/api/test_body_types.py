"""Numbers and flags in bodies are what they say: `true` is no 1.0, and 0 is no `false`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi.routing import APIRoute
from hagane.server.app import create_app
from hagane.system.settings import Settings
from pydantic import BaseModel

SCALARS = ("float", "int", "bool")


def scalars(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, core schema) of each number and flag; keys of JSON objects are always text."""
    if isinstance(schema, dict):
        if schema.get("type") in SCALARS:
            yield path, schema
        for key, inner in schema.items():
            if key not in ("metadata", "serialization", "keys_schema"):
                yield from scalars(inner, f"{path}.{key}")
    elif isinstance(schema, list | tuple):
        for number, inner in enumerate(schema):
            yield from scalars(inner, f"{path}.{number}")


def test_every_number_and_flag_of_every_body_is_strict(tiny_model_dir, tmp_path):
    settings = Settings(
        _cli_parse_args=False, model=str(tiny_model_dir), data_dir=tmp_path, device="cpu"
    )
    app = create_app(settings, lambda: None)
    bodies = {
        field.field_info.annotation
        for route in app.routes
        if isinstance(route, APIRoute)
        for field in route.dependant.body_params
    }
    models = [b for b in bodies if isinstance(b, type) and issubclass(b, BaseModel)]
    assert models
    lax = {
        f"{model.__name__}{where}"
        for model in models
        for where, scalar in scalars(model.__pydantic_core_schema__)
        if not scalar.get("strict")
    }
    assert lax == set()
