"""Fields that say what an answer must look like, in the words of OpenAI, vLLM and llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hagane.api.fields import Body, Flag
from hagane.generation import grammars
from hagane.generation.grammars import Grammar
from hagane.generation.structural_tags import from_structural_tag
from hagane.system.errors import InvalidRequestError

JsonSchema = dict[str, Any] | Flag
AddedTokens = Callable[[str], int | None]
"""The id of a text that is one added token of a model."""
Choices = Annotated[list[str], Field(min_length=1, max_length=grammars.MOST_CHOICES)]


class SchemaFormat(Body):
    """OpenAI's named schema. Without `schema` any JSON object will do."""

    name: Annotated[str, Field(max_length=64)] = ""
    description: Annotated[str, Field(max_length=4096)] | None = None
    json_schema: Annotated[JsonSchema | None, Field(alias="schema")] = None
    strict: Flag | None = None


class ResponseFormat(Body):
    """OpenAI's `response_format`; llama.cpp's clients add a `schema` to json_object."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: SchemaFormat | None = None
    object_schema: Annotated[JsonSchema | None, Field(alias="schema")] = None
    # Of vLLM's structural tags.
    structures: list[Any] | None = None
    triggers: list[Any] | None = None
    format: dict[str, Any] | None = None

    @model_validator(mode="after")
    def need_a_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None and self.object_schema is None:
            raise ValueError("type 'json_schema' needs the field 'json_schema'")
        return self

    def grammar(self, added: AddedTokens) -> Grammar | None:
        """The grammar that it requests. Raises InvalidRequestError."""
        param = "response_format"
        if self.type == "structural_tag":
            return from_structural_tag(self.model_dump(exclude_none=True), param, added)
        schema = self.object_schema
        if self.json_schema is not None:
            schema, param = self.json_schema.json_schema, "response_format.json_schema.schema"
        if self.type == "text":
            return None
        if schema is None:
            return grammars.any_json_object("response_format")
        return grammars.from_json_schema(schema, param)


class StructuredOutputs(Body):
    """vLLM's `structured_outputs`: one of these."""

    json_schema: Annotated[JsonSchema | str | None, Field(alias="json")] = None
    json_object: Flag | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    structural_tag: dict[str, Any] | str | None = None


class StructuredBody(Body):
    """The fields of a body; at most one of them may ask for something."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchema | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    json_schema: JsonSchema | None = None
    grammar: str | None = None

    @property
    def has_grammar(self) -> bool:
        """Whether a grammar is to be compiled for this body."""
        return bool(self._wishes(_no_tokens))

    def wanted_grammar(self, added: AddedTokens) -> Grammar | None:
        """The grammar of an answer; takes time with the grammar's length.

        `added` gives the id of a text that is one added token of the model.
        Raises InvalidRequestError naming the field, also where several ask for something.
        """
        wanted = self._wishes(added)
        if len(wanted) > 1:
            raise InvalidRequestError(
                f"'{wanted[0][0]}' and '{wanted[1][0]}' both say what the answer must look like; "
                "give one of them.",
                param=wanted[1][0],
            )
        return wanted[0][1](wanted[0][2], wanted[0][0]) if wanted else None

    def _wishes(
        self, added: AddedTokens
    ) -> list[tuple[str, Callable[[Any, str], Grammar | None], Any]]:
        """(field, how to read it, value) of those that ask for something."""
        form = self.response_format
        outputs = self.structured_outputs or StructuredOutputs()
        named = form if form is not None and form.type != "text" else None

        def tagged(value: Any, param: str) -> Grammar:
            return from_structural_tag(value, param, added)

        fields: list[tuple[str, Callable[[Any, str], Grammar | None], Any]] = [
            ("response_format", lambda value, _: value.grammar(added), named),
            ("structured_outputs.json", grammars.from_json_schema, outputs.json_schema),
            ("structured_outputs.json_object", _any_object, outputs.json_object),
            ("structured_outputs.regex", grammars.from_regex, outputs.regex),
            ("structured_outputs.choice", grammars.from_choices, outputs.choice),
            ("structured_outputs.grammar", grammars.from_text, outputs.grammar),
            ("structured_outputs.structural_tag", tagged, outputs.structural_tag),
            ("guided_json", grammars.from_json_schema, self.guided_json),
            ("guided_regex", grammars.from_regex, self.guided_regex),
            ("guided_choice", grammars.from_choices, self.guided_choice),
            ("guided_grammar", grammars.from_text, self.guided_grammar),
            ("json_schema", grammars.from_json_schema, self.json_schema),
            ("grammar", grammars.from_text, self.grammar),
        ]
        return [field for field in fields if field[2] is not None and field[2] is not False]


def _no_tokens(_: str) -> int | None:
    return None


def _any_object(_: bool, param: str) -> Grammar:
    return grammars.any_json_object(param)
