"""Who may call which route: one table, without an entry in which a route cannot be made.

Keys are checked before a byte of the body is read.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from fastapi import APIRouter, Request, Response

from hagane.api.body import IncomingBody, read_body
from hagane.api.internal import caller_of
from hagane.api.json_body import JsonRoute
from hagane.api.keyring import Access, KeyRing, authorization_of
from hagane.system.settings import Settings


@dataclass(frozen=True)
class Rule:
    """One line of the table. With `admin_port` set, `admin_listener` moves a route there.

    A route that is `streamed` reads its body piece by piece and bounds it by itself. For the
    description: the statuses of refusals that only some routes have, and whether it may answer
    with server-sent `events`.
    """

    access: Access
    admin_listener: bool = False
    streamed: bool = False
    refusals: tuple[int, ...] = ()
    events: bool = False


_OPEN = Rule(Access.OPEN)
_METRICS = Rule(Access.METRICS)
_CHAT = Rule(Access.CHAT)
_ADMIN = Rule(Access.ADMIN, admin_listener=True)
# A page holds no data: its scripts ask for that with a key.
_ADMIN_PAGE = Rule(Access.OPEN, admin_listener=True)

_GENERATES = replace(_CHAT, refusals=(404, 429, 504), events=True)
_FINDS = replace(_CHAT, refusals=(404,))
_STORES = replace(_CHAT, refusals=(507,))
_STORED = replace(_CHAT, refusals=(404, 507))
_MANAGES = replace(_ADMIN, refusals=(404,))
_CHANGES = replace(_ADMIN, refusals=(404, 409, 507))
_FOLLOWS = replace(_MANAGES, events=True)
_UPLOADS = replace(_CHAT, refusals=(507,), streamed=True)

_RUN = "/v1/evals/{eval_id}/runs/{run_id}"
_JOB = "/v1/fine_tuning/jobs/{job_id}"
_PRETRAINING_JOB = "/admin/pretraining/jobs/{job_id}"
TABLE = MappingProxyType(
    {
        "POST /v1/chat/completions": _GENERATES,
        "POST /v1/chat/completions/render": _FINDS,
        "POST /v1/completions": _GENERATES,
        "POST /v1/messages": _GENERATES,
        "POST /v1/embeddings": replace(_GENERATES, events=False),
        "POST /v1/rerank": replace(_GENERATES, events=False),
        "POST /v1/score": replace(_GENERATES, events=False),
        "POST /v1/messages/count_tokens": _FINDS,
        "POST /v1/responses": replace(_GENERATES, refusals=(404, 429, 504, 507)),
        "POST /v1/responses/input_tokens": _FINDS,
        "GET /v1/responses/{response_id}": replace(_FINDS, events=True),
        "DELETE /v1/responses/{response_id}": _FINDS,
        "POST /v1/responses/{response_id}/cancel": _FINDS,
        "GET /v1/responses/{response_id}/input_items": _FINDS,
        "POST /v1/conversations": replace(_CHAT, refusals=(507,)),
        "GET /v1/conversations/{conversation_id}": _FINDS,
        "POST /v1/conversations/{conversation_id}": replace(_FINDS, refusals=(404, 507)),
        "DELETE /v1/conversations/{conversation_id}": _FINDS,
        "GET /v1/conversations/{conversation_id}/items": _FINDS,
        "POST /v1/conversations/{conversation_id}/items": replace(_FINDS, refusals=(404, 507)),
        "GET /v1/conversations/{conversation_id}/items/{item_id}": _FINDS,
        "DELETE /v1/conversations/{conversation_id}/items/{item_id}": _FINDS,
        "GET /v1/chat/completions": _CHAT,
        "DELETE /v1/chat/completions": _STORES,
        "GET /v1/chat/completions/{completion_id}": _FINDS,
        "POST /v1/chat/completions/{completion_id}": _STORED,
        "DELETE /v1/chat/completions/{completion_id}": _STORED,
        "GET /v1/chat/completions/{completion_id}/messages": _FINDS,
        "GET /v1/feedback": _CHAT,
        "POST /v1/feedback": _STORED,
        "DELETE /v1/feedback/{feedback_id}": _STORED,
        "GET /v1/datasets": _ADMIN,
        "POST /v1/datasets": _CHANGES,
        "POST /v1/datasets/preview": _MANAGES,
        "GET /v1/datasets/{dataset_id}": _MANAGES,
        "POST /v1/datasets/{dataset_id}/edit": _CHANGES,
        "DELETE /v1/datasets/{dataset_id}": _CHANGES,
        "GET /v1/evals": _ADMIN,
        "POST /v1/evals": _CHANGES,
        "GET /v1/evals/{eval_id}": _MANAGES,
        "POST /v1/evals/{eval_id}": _CHANGES,
        "DELETE /v1/evals/{eval_id}": _CHANGES,
        "GET /v1/evals/{eval_id}/compare": _MANAGES,
        "GET /v1/evals/{eval_id}/runs": _MANAGES,
        "POST /v1/evals/{eval_id}/runs": _CHANGES,
        f"GET {_RUN}": _MANAGES,
        f"POST {_RUN}": _CHANGES,
        f"POST {_RUN}/cancel": _CHANGES,
        f"DELETE {_RUN}": _CHANGES,
        f"GET {_RUN}/output_items": _MANAGES,
        f"GET {_RUN}/output_items/{{output_item_id}}": _MANAGES,
        "GET /v1/models": _CHAT,
        "GET /v1/models/{model_id:path}": _FINDS,
        "GET /v1/chats": _FINDS,
        "GET /v1/chats/{chat_id}": _FINDS,
        "PUT /v1/chats/{chat_id}": replace(_FINDS, refusals=(404, 409, 507)),
        "DELETE /v1/chats/{chat_id}": _STORED,
        "POST /v1/documents/text": replace(_CHAT, refusals=(429,)),
        "GET /v1/tools": _CHAT,
        "POST /v1/tools/call": replace(_FINDS, refusals=(404, 429)),
        "POST /tokenize": _FINDS,
        "POST /detokenize": _FINDS,
        "GET /health": _OPEN,
        "GET /version": _OPEN,
        "GET /health/live": _OPEN,
        "GET /health/ready": _OPEN,
        "GET /metrics": _METRICS,
        "GET /openapi.json": _OPEN,
        "GET /": _OPEN,
        "GET /admin": _ADMIN_PAGE,
        "GET /admin/status": _ADMIN,
        "DELETE /v1/models/{model_id:path}": _CHANGES,
        "POST /v1/load_lora_adapter": _CHANGES,
        "POST /v1/unload_lora_adapter": _CHANGES,
        "GET /admin/models": _ADMIN,
        "POST /admin/models/load": replace(_MANAGES, refusals=(404, 409)),
        "POST /admin/models/unload": replace(_MANAGES, refusals=(404, 409)),
        "GET /admin/logs": _ADMIN,
        "GET /admin/history": _ADMIN,
        "GET /admin/exports": _ADMIN,
        "POST /admin/exports": _CHANGES,
        "GET /admin/exports/{export_id}": _MANAGES,
        "GET /admin/exports/{export_id}/content": replace(_MANAGES, refusals=(404, 409)),
        "DELETE /admin/exports/{export_id}": _MANAGES,
        "POST /admin/models/pull": replace(_CHANGES, refusals=(409, 429, 507)),
        "GET /admin/models/pulls": _ADMIN,
        "GET /admin/models/pulls/{pull_id}": _MANAGES,
        "POST /admin/models/pulls/{pull_id}/cancel": _MANAGES,
        "DELETE /admin/models/{name:path}": replace(_MANAGES, refusals=(404, 409)),
        "GET /admin/keys": _ADMIN,
        "POST /admin/keys": _CHANGES,
        "GET /admin/keys/{key_id}": _MANAGES,
        "POST /admin/keys/{key_id}": _CHANGES,
        "DELETE /admin/keys/{key_id}": _CHANGES,
        "GET /admin/key_usage": _MANAGES,
        "GET /admin/adapters": _ADMIN,
        "POST /admin/adapters/{name:path}/promote": _CHANGES,
        "GET /admin/aliases": _ADMIN,
        "POST /admin/aliases": _CHANGES,
        "GET /admin/aliases/{name:path}": _MANAGES,
        "DELETE /admin/aliases/{name:path}": _CHANGES,
        "POST /admin/aliases/{name:path}/rollback": _CHANGES,
        "GET /v1/files": _CHAT,
        "POST /v1/files": _UPLOADS,
        "GET /v1/files/{file_id}": _FINDS,
        "DELETE /v1/files/{file_id}": replace(_FINDS, refusals=(404, 409, 507)),
        "GET /v1/files/{file_id}/content": _FINDS,
        "GET /v1/files/{file_id}/report": _MANAGES,
        "GET /v1/batches": _CHAT,
        "POST /v1/batches": replace(_FINDS, refusals=(404, 429, 507)),
        "GET /v1/batches/{batch_id}": _FINDS,
        "POST /v1/batches/{batch_id}/cancel": replace(_FINDS, refusals=(404, 409, 507)),
        "GET /v1/fine_tuning/jobs": _ADMIN,
        "POST /v1/fine_tuning/jobs": _CHANGES,
        f"GET {_JOB}": _MANAGES,
        f"POST {_JOB}/cancel": _CHANGES,
        f"POST {_JOB}/pause": _CHANGES,
        f"POST {_JOB}/resume": _CHANGES,
        f"GET {_JOB}/events": _FOLLOWS,
        f"GET {_JOB}/checkpoints": _MANAGES,
        "GET /admin/pretraining/jobs": _ADMIN,
        "POST /admin/pretraining/jobs": _CHANGES,
        f"GET {_PRETRAINING_JOB}": _MANAGES,
        f"POST {_PRETRAINING_JOB}/cancel": _CHANGES,
        f"POST {_PRETRAINING_JOB}/pause": _CHANGES,
        f"POST {_PRETRAINING_JOB}/resume": _CHANGES,
        f"POST {_PRETRAINING_JOB}/promote": _CHANGES,
        f"GET {_PRETRAINING_JOB}/events": _FOLLOWS,
    }
)


class GuardedRoute(JsonRoute):
    """A route of the table: the key first, the body within its bounds, then the endpoint.

    Raises KeyError when it is made without an entry in the table.
    """

    rule: Rule

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, with the guards before it."""
        # HEAD is GET without the body.
        (method,) = (self.methods or set()) - {"HEAD"}
        name = f"{method} {self.path}"
        if name not in TABLE:
            raise KeyError(f"{name} is not in the table of hagane.api.access: say who may call it")
        self.rule = TABLE[name]
        rule, answer = self.rule, super().get_route_handler()

        async def guarded(request: Request) -> Response:
            settings: Settings = request.app.state.serving.settings
            keys: KeyRing = request.app.state.serving.keys
            request.state.key_label = _authorized(keys, rule.access, request)
            body = IncomingBody(request.scope, request.receive, settings.body_timeout)
            if rule.streamed:
                return await answer(Request(request.scope, body.receive))
            limit, arriving = int(settings.max_body_bytes), request.app.state.arriving
            receive = await read_body(body, limit, arriving)
            return await answer(Request(request.scope, receive))

        return guarded


def _authorized(keys: KeyRing, access: Access, request: Request) -> str:
    """The label of the caller's key, or of the one in whose name this server asks itself."""
    label = caller_of(request.scope)
    if label is not None:
        return keys.require_honoured(label)
    return keys.authorize(access, authorization_of(request))


def guarded_router(**options: Any) -> APIRouter:
    """A router whose routes are all in the table; the options are APIRouter's."""
    return APIRouter(route_class=GuardedRoute, **options)


def routes_of(routers: Iterable[APIRouter], *, admin: bool) -> list[GuardedRoute]:
    """All routes of the routers, those of the admin listener only with `admin`."""
    found = [route for router in routers for route in router.routes]
    guarded = [route for route in found if isinstance(route, GuardedRoute)]
    if len(guarded) < len(found):
        raise TypeError("every router is made by guarded_router")
    return [route for route in guarded if admin or not route.rule.admin_listener]
