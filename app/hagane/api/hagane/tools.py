"""/v1/tools: what models may call from the chat page, and calling it. Any client may do the same.

A client sends `tools` with its request; the model's calls come back in its answer; the client
posts each here, and sends the result as a message of the role `tool`.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic import Field

from hagane.api.access import guarded_router
from hagane.api.fields import Body
from hagane.api.limits import Account
from hagane.api.serving import get_serving, meter
from hagane.api.sse import unless_disconnected
from hagane.toolbox.tool import Tool, ToolError

router = guarded_router(prefix="/v1/tools")


class CallBody(Body):
    """POST /v1/tools/call. `time_zone` is the user's, as IANA names it."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    arguments: dict[str, Any] = Field({})
    time_zone: Annotated[str, Field(max_length=64)] | None = None


@router.get("")
async def list_tools(request: Request) -> dict[str, Any]:
    """The tools, in the form that chat completions take."""
    tools = await get_serving(request).toolbox.tools()
    return {"object": "list", "data": [_describe(tool) for tool in tools]}


@router.post("/call")
async def call(
    body: CallBody, request: Request, _: Annotated[Account, Depends(meter)]
) -> dict[str, Any]:
    """Run a tool; `is_error` where it could not do what it was asked to. Raises NotFoundError."""
    arguments = dict(body.arguments)
    if body.name == "clock" and body.time_zone is not None:
        arguments.setdefault("time_zone", body.time_zone)
    running = get_serving(request).toolbox.call(body.name, arguments)
    try:
        content = await unless_disconnected(request, running)
    except ToolError as error:
        return {"content": str(error), "is_error": True}
    return {"content": content, "is_error": False}


def _describe(tool: Tool) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
    }
    return {"type": "function", "function": function, "source": tool.source}
