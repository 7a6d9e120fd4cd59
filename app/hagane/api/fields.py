"""Parts of all request bodies: no unknown fields, null for "not given", bounded values."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

TokenId = Annotated[int, Field(ge=0, strict=True)]
Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
# The range that messages, tensors and the database can hold.
Count = Annotated[int, Field(strict=True, ge=-(1 << 63), lt=1 << 63)]
# Names of aliases, adapters and new models: safe in paths, logs and terminals.
Name = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
# How a request names a model: also names with colons and slashes, which jobs and hubs give.
ModelName = Annotated[str, Field(min_length=1, max_length=512)]
Hint = Annotated[str, Field(max_length=1024)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class Body(BaseModel):
    """Base of all bodies: no unknown fields, and null leaves an optional field out."""

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        described = handler.resolve_ref_schema(schema)
        properties = described.get("properties", {})
        for name in properties.keys() - set(described.get("required", ())):
            properties[name] = _or_null(properties[name])
        return schema

    @model_validator(mode="before")
    @classmethod
    def leave_null_out(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        fields = cls.model_fields
        return {
            key: item
            for key, item in value.items()
            if item is not None or key not in fields or fields[key].is_required()
        }


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema that takes null, too."""
    forms = schema.get("anyOf", [schema])
    if {"type": "null"} in forms or schema.get("type") == "null":
        return schema
    return {"anyOf": [*forms, {"type": "null"}]} | {
        key: schema[key] for key in ("title", "description", "default") if key in schema
    }


def either(*kinds: str) -> Any:
    """Chooses the form of a union before validating it: one clear error, not one per form."""

    def choose(value: Any) -> str | None:
        kind = "str" if isinstance(value, str) else "list" if isinstance(value, list) else None
        if kind == "list" and value and "ids" in kinds:
            first = value[0]
            kind = "ids" if isinstance(first, int) else "lists" if isinstance(first, list) else kind
        return kind

    return Discriminator(
        choose,
        custom_error_type="invalid_type",
        custom_error_message="Input should be a string or a list",
    )
