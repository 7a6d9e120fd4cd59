"""Shared parts of the commands: options as settings, help by groups, errors of one line."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from inspect import cleandoc
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from hagane.system.errors import ConfigurationError

S = TypeVar("S", bound=BaseSettings)

# The types of options as a person would call them.
_PLAIN = {
    "str": "TEXT", "int": "N", "float": "NUMBER", "bool": "BOOL", "ByteSize": "SIZE",
    "Path": "PATH", "SecretStr": "KEY", "list[str]": "TEXT", "list[int]": "N,N,...",
    "list[Path]": "PATH",
}  # fmt: skip
_WIDTH = 100


class Options(BaseSettings):
    """Base of a command's options, which come from its command line alone."""

    model_config = SettingsConfigDict(
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags="toggle",
        cli_hide_none_type=True,
        cli_enforce_required=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def read(
    kind: type[S],
    arguments: Sequence[str],
    command: str,
    groups: Mapping[str, Collection[str]] | None = None,
    epilog: str | None = None,
) -> S:
    """The options in `arguments`; `--help` prints the docstring of `kind` and ends the process.

    `groups` are headings of the help and the names of the options below each. Raises
    ConfigurationError for options that do not exist or lack a value, with the nearest one that
    does, and ValidationError for values.
    """
    parser = _Parser(
        f"hagane {command}",
        description=cleandoc(kind.__doc__ or ""),
        epilog=epilog,
        formatter_class=_Help,
    )
    heading = {name: title for title, names in (groups or {}).items() for name in names}
    sections: dict[str, Any] = {}

    def add_argument(target: Any, *names: str, **options: Any) -> argparse.Action:
        name = names[0].lstrip("-").replace("-", "_")
        field = _field(kind, name)
        options["help"] = _help(field)
        if "metavar" in options and names[0].startswith("-"):
            options["metavar"] = _plain(options["metavar"])
        if (title := heading.get(name)) is not None:
            if title not in sections:
                sections[title] = parser.add_argument_group(title)
            target = sections[title]
        parser.known += names
        if not names[0].startswith("-"):
            parser.positionals.append(_positional(name, field))
        action: argparse.Action = target.add_argument(*names, **options)
        return action

    source: CliSettingsSource[Any] = CliSettingsSource(
        kind,
        cli_hide_none_type=True,
        root_parser=parser,
        parse_args_method=_Parser.parse_args,
        add_argument_method=add_argument,
        formatter_class=_Help,
    )
    return CliApp.run(kind, cli_args=list(arguments), cli_settings_source=source)


def nearest(name: str, known: Collection[str]) -> str:
    """A question that names the one that was probably meant, or nothing."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


class _Help(argparse.RawDescriptionHelpFormatter):
    """One line of usage: the options follow by groups."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=_WIDTH)


class _Parser(argparse.ArgumentParser):
    """argparse's, whose errors are ours.

    `known` are the names of all options and positionals; `positionals` are these as usage has them.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.known: list[str] = []
        self.positionals: list[str] = []
        super().__init__(*arguments, **options)

    def format_usage(self) -> str:
        return " ".join(["usage:", self.prog, *self.positionals, "[options]"]) + "\n"

    def format_help(self) -> str:
        _, _, rest = super().format_help().partition("\n\n")
        return f"{self.format_usage()}\n{rest}"

    def error(self, message: str) -> NoReturn:
        """Raises ConfigurationError, with the option that was probably meant."""
        hint = ""
        if unknown := re.match(r"unrecognized arguments: (--[\w-]+)", message):
            hint = nearest(unknown[1], self.known)
        raise ConfigurationError(f"{message}{hint or '.'} See `{self.prog} --help`")


def _field(kind: type[BaseSettings], name: str) -> FieldInfo:
    fields = kind.model_fields
    # A switch's other form is of the same field.
    for wanted in (name, name.removeprefix("no_")):
        if wanted in fields:
            return fields[wanted]
    return next(field for field in fields.values() if field.alias == name)


def _positional(name: str, field: FieldInfo) -> str:
    """A positional as usage has it: the choices of one that has them, brackets where optional."""
    if get_origin(field.annotation) is Literal:
        return "{" + ",".join(get_args(field.annotation)) + "}"
    return name.upper() if field.is_required() else f"[{name.upper()}]"


def _help(field: FieldInfo) -> str:
    text = field.description or ""
    shown = _default(field)
    if shown and "default:" not in text:
        text = f"{text} [{shown}]" if text else f"[{shown}]"
    return text.replace("%", "%%")


def _default(field: FieldInfo) -> str:
    value = field.default
    if field.is_required() or value is None or value is False or value == []:
        return ""
    if value is True:
        return "on"
    if hasattr(value, "human_readable"):
        return str(value.human_readable())
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "" if hasattr(value, "get_secret_value") else str(value)


def _plain(metavar: str) -> str:
    return _PLAIN.get(metavar, metavar)
