"""`hagane keys`: the API keys of a running server."""

from __future__ import annotations

import os
import time
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg

from hagane.cli.command import Options, read
from hagane.cli.server_client import ServerClient
from hagane.system.settings import PREFIX

_KEYS, _USAGE = "/admin/keys", "/admin/key_usage"
_DAY_SECONDS = 86400
_NAMED = {"create": "the new key's name", "revoke": "the key's id"}


class KeysOptions(Options):
    """Make, limit and revoke API keys of a running server, and show their use.

    From the first key on, the server requires one for everything but its pages.
    """

    action: CliPositionalArg[Literal["list", "create", "revoke", "usage"]] = Field(
        description="list; create a key; revoke one; usage by day"
    )
    name: CliPositionalArg[str | None] = Field(
        None, description="of create: a name for the key; of revoke and usage: its id"
    )
    requests: int | None = Field(None, ge=1, description="of create: requests a minute")
    tokens: int | None = Field(None, ge=1, description="of create: tokens a minute")
    concurrent: int | None = Field(None, ge=1, description="of create: requests at a time")
    days: int | None = Field(
        None, ge=1, description="of create: valid for so many; of usage: so many are shown"
    )
    url: str = Field("http://127.0.0.1:8000", description="the server's address")
    admin_key: str | None = Field(
        None, description=f"the server's admin key; default: {PREFIX}ADMIN_KEY"
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.name is None and self.action in _NAMED:
            raise ValueError(f"{self.action} takes {_NAMED[self.action]}")
        if self.name is not None and self.action == "list":
            raise ValueError("list takes no name")
        return self


def run(arguments: list[str]) -> int:
    """Run the command."""
    options = read(KeysOptions, arguments, "keys")
    key = options.admin_key
    if key is None:
        key = os.environ.get(f"{PREFIX}ADMIN_KEY", "")
    client = ServerClient(options.url, key)
    {"list": _list, "create": _create, "revoke": _revoke, "usage": _usage}[options.action](
        client, options
    )
    return 0


def _list(client: ServerClient, _: KeysOptions) -> None:
    keys = client.get(_KEYS, limit=1000)["data"]
    for key in keys:
        print(_line(key))
    if not keys:
        print("no keys were made; those of the settings are not listed")


def _create(client: ServerClient, options: KeysOptions) -> None:
    limits = {
        "requests_per_minute": options.requests,
        "tokens_per_minute": options.tokens,
        "concurrent_requests": options.concurrent,
    }
    expires = None if options.days is None else int(time.time()) + options.days * _DAY_SECONDS
    made = client.post(_KEYS, {"name": options.name, "limits": limits, "expires_at": expires})
    print(_line(made))
    print(f"the key, which is not shown again: {made['key']}")


def _revoke(client: ServerClient, options: KeysOptions) -> None:
    print(_line(client.delete(f"{_KEYS}/{options.name}")))


def _usage(client: ServerClient, options: KeysOptions) -> None:
    query = {} if options.name is None else {"key_id": options.name}
    answer = client.get(_USAGE, days=options.days or 30, **query)
    print(f"{'day':12}{'key':24}{'requests':>10}{'refused':>10}{'read':>12}{'made':>12}")
    for use in answer["data"]:
        print(
            f"{use['day']:12}{use['name'] or use['label']:24}{use['requests']:10}"
            f"{use['refused']:10}{use['prompt_tokens']:12}{use['generated_tokens']:12}"
        )


def _line(key: dict[str, Any]) -> str:
    limits = [
        f"{limit} {name.replace('_', ' ')}"
        for name, limit in key["limits"].items()
        if limit is not None
    ]
    state = "valid"
    if key["revoked_at"] is not None:
        state = "revoked"
    elif key["expires_at"] is not None:
        state = time.strftime("until %Y-%m-%d", time.localtime(key["expires_at"]))
    return f"{key['id']}  {key['hint']}  {state:16}  {key['name']}  {', '.join(limits)}".rstrip()
