"""OpenAI's `tools` and `tool_choice`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hagane.api.fields import Body, Flag
from hagane.generation.tools import NO_TOOLS, Tools
from hagane.system.errors import InvalidRequestError

MOST_TOOLS = 128
_SHOWN = {"name", "description", "parameters", "strict"}
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


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], Field(min_length=1, max_length=MOST_TOOLS)]


class AllowedChoice(Body):
    """Those of the tools that an answer may call."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _kind(value: Any) -> str:
    if isinstance(value, AllowedChoice):
        return "allowed"
    if isinstance(value, dict):
        return "allowed" if value.get("type") == "allowed_tools" else "dict"
    return "dict" if isinstance(value, NamedChoice) else "str"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("str")]
    | Annotated[NamedChoice, Tag("dict")]
    | Annotated[AllowedChoice, Tag("allowed")],
    Discriminator(_kind),
]


@dataclass(frozen=True)
class ToolSelection:
    """A dialect's `tool_choice`, normalised; `names` None is all tools.

    With `one`, exactly one of them is called.
    """

    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] | None = None
    one: bool = False


def choose(choice: ToolSelection, functions: Sequence[Function], *, parallel: bool) -> Tools:
    """The tools that an answer may or must call.

    Raises InvalidRequestError for a choice among tools that are not there.
    """
    schemas = {
        function.name: function.parameters or {"type": "object", "properties": {}}
        for function in allowed(choice, functions)
    }
    for name in choice.names or ():
        if name not in schemas:
            raise InvalidRequestError(
                f"'tool_choice' names '{name}', which is not among 'tools'.",
                param="tool_choice",
            )
    if choice.mode == "required" and not schemas:
        raise InvalidRequestError(
            "'tool_choice' requires a call, but there are no 'tools'.", param="tool_choice"
        )
    if choice.mode == "none" or not schemas:
        return NO_TOOLS
    strict = any(function.strict for function in allowed(choice, functions))
    return Tools(schemas, choice.mode == "required", parallel and not choice.one, strict)


def allowed(choice: ToolSelection, functions: Sequence[Function]) -> list[Function]:
    """The functions that the model may see: none where none may be called."""
    if choice.mode == "none":
        return []
    return [each for each in functions if choice.names is None or each.name in choice.names]


class ToolsBody(Body):
    """The fields of a body that concern tools; `functions` is the older way to say the same."""

    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: Flag | None = None
    functions: Annotated[list[Function], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    function_call: (
        Annotated[
            Annotated[Literal["none", "auto"], Tag("str")] | Annotated[FunctionChoice, Tag("dict")],
            Discriminator(lambda value: "str" if isinstance(value, str) else "dict"),
        ]
        | None
    ) = None

    @field_validator("tools")
    @classmethod
    def need_different_names(cls, value: list[Tool] | None) -> list[Tool] | None:
        require_different([tool.function for tool in value or ()])
        return value

    @field_validator("functions")
    @classmethod
    def need_different_functions(cls, value: list[Function] | None) -> list[Function] | None:
        require_different(value or ())
        return value

    @property
    def calls_are_older(self) -> bool:
        """Whether the answer's call is to be written as `function_call`."""
        return bool(self.functions)

    def wanted_tools(self) -> Tools:
        """The tools that an answer may or must call.

        Raises InvalidRequestError for a choice among tools that are not there, and for both forms
        at once.
        """
        if self.tools and self.functions:
            raise InvalidRequestError(
                "Give 'tools' or the older 'functions', not both.", param="functions"
            )
        parallel = self.parallel_tool_calls is not False and not self.functions
        return choose(self._choice(), self._functions(), parallel=parallel)

    def shown_tools(self) -> tuple[dict[str, Any], ...]:
        """The tools that the model's template is to show: none where none may be called."""
        return shown(allowed(self._choice(), self._functions()))

    def _functions(self) -> list[Function]:
        return [tool.function for tool in self.tools or ()] or list(self.functions or ())

    def _choice(self) -> ToolSelection:
        if self.functions:
            older = self.function_call
            if isinstance(older, FunctionChoice):
                return ToolSelection("required", (older.name,), one=True)
            return ToolSelection(older or "auto")
        choice = self.tool_choice
        if isinstance(choice, NamedChoice):
            return ToolSelection("required", (choice.function.name,), one=True)
        if isinstance(choice, AllowedChoice):
            names = tuple(tool.function.name for tool in choice.allowed_tools.tools)
            return ToolSelection(choice.allowed_tools.mode, names)
        return ToolSelection(choice or "auto")


def require_different(functions: Sequence[Function]) -> None:
    """Raises ValueError where two functions have the same name."""
    names = [function.name for function in functions]
    if len(set(names)) < len(names):
        raise ValueError("two tools have the same name")


def shown(functions: Sequence[Function]) -> tuple[dict[str, Any], ...]:
    """Functions as chat templates expect tools."""
    return tuple(
        {"type": "function", "function": function.model_dump(include=_SHOWN, exclude_none=True)}
        for function in functions
    )
