"""OpenAI's `tools` and `tool_choice`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hagane.api.fields import Body, Flag
from hagane.generation.tools import NO_TOOLS, Tools
from hagane.system.errors import InvalidRequestError

_MOST_TOOLS = 128
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


class Function(Body):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Flag | None = None

    @field_validator("parameters")
    @classmethod
    def need_named_properties(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and not isinstance(value.get("properties", {}), dict):
            raise ValueError("'properties' must be an object of names and their schemas")
        return value


class Tool(Body):
    type: Literal["function"]
    function: Function

    @model_validator(mode="before")
    @classmethod
    def name_other_kinds(cls, value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind != "function":
            raise PydanticCustomError(
                "unsupported_content",
                "tools of type '{kind}' are not supported by this server; use 'function'",
                {"kind": kind[:64]},
            )
        return value


class FunctionChoice(Body):
    name: FunctionName


class NamedChoice(Body):
    type: Literal["function"] = "function"
    function: FunctionChoice


def _kind(value: Any) -> str:
    return "dict" if isinstance(value, dict | NamedChoice) else "str"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("str")]
    | Annotated[NamedChoice, Tag("dict")],
    Discriminator(_kind),
]


class ToolsBody(Body):
    """The fields of a body that concern tools."""

    tools: Annotated[list[Tool], Field(max_length=_MOST_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: Flag | None = None
    # The older way to say the same; empty alone is accepted.
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: Literal["none", "auto"] | None = None

    @field_validator("tools")
    @classmethod
    def need_different_names(cls, value: list[Tool] | None) -> list[Tool] | None:
        names = [tool.function.name for tool in value or ()]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        return value

    def wanted_tools(self) -> Tools:
        """What an answer may or must call.

        Raises InvalidRequestError for a choice among tools that are not there.
        """
        choice = self.tool_choice or "auto"
        functions = {
            tool.function.name: tool.function.parameters or {"type": "object", "properties": {}}
            for tool in self.tools or ()
        }
        if choice == "none" or (choice == "auto" and not functions):
            return NO_TOOLS
        if isinstance(choice, NamedChoice):
            name = choice.function.name
            if name not in functions:
                raise InvalidRequestError(
                    f"'tool_choice' names '{name}', which is not among 'tools'.",
                    param="tool_choice",
                )
            return Tools({name: functions[name]}, required=True, parallel=False)
        if not functions:
            raise InvalidRequestError(
                "'tool_choice' is 'required', and there are no 'tools'.", param="tool_choice"
            )
        return Tools(functions, choice == "required", self.parallel_tool_calls is not False)

    def shown_tools(self) -> tuple[dict[str, Any], ...]:
        """The tools that the model's template is to show: none where none may be called."""
        if self.tool_choice == "none":
            return ()
        return tuple(tool.model_dump(exclude_none=True) for tool in self.tools or ())
