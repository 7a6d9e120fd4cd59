"""The `hagane` command: dispatches to a subcommand, and prints a failure in one line."""

from __future__ import annotations

import sys
from importlib import import_module
from types import MappingProxyType

from pydantic import ValidationError

from hagane import __version__
from hagane.cli.command import nearest
from hagane.system.errors import ConfigurationError, HaganeError

# Each is the module of its name with a function `run(arguments) -> exit status`; a module is
# imported when its command runs.
COMMANDS = MappingProxyType(
    {
        "serve": "Serve a model over HTTP with the OpenAI API.",
        "cluster": "Serve on a Ray cluster, with replicas of each model.",
        "chat": "Chat in the terminal with a running server.",
        "jobs": "List, watch and steer the training jobs of a running server.",
        "keys": "Make, limit and revoke API keys of a running server, and show their use.",
        "models": "List, fetch, describe and remove the models on this machine.",
        "quantize": "Write a quantized copy of a model directory.",
        "pretrain": "Train a small model from a TOML file; resumes an interrupted run.",
        "finetune": "Train an adapter from a file of examples; resumes an interrupted run.",
        "merge": "Write a model and an adapter as one Hugging Face directory.",
        "widen": "Write a copy of a model with more tokens in its vocabulary.",
        "export": "Write a model, with an adapter or without, as a GGUF file for llama.cpp.",
        "eval": "Measure how well a model predicts text, answers questions, and does by graders.",
        "bench": "Measure how fast a model runs on this machine.",
        "doctor": "Report what is found here, what a server would use, and what is missing.",
        "completion": "Print a script by which a shell completes commands and options.",
    }
)
# `eval` is a builtin's name.
_MODULES = {"eval": "evaluate"}


def module_of(command: str) -> str:
    """The full name of a command's module."""
    return f"hagane.cli.{_MODULES.get(command, command)}"


def help_text() -> str:
    """The text that `hagane` prints without a command."""
    listing = "\n".join(f"  {name:10} {summary}" for name, summary in COMMANDS.items())
    return (
        "usage: hagane COMMAND [options]\n\n"
        "One server for a language model's whole life.\n\n"
        f"{listing}\n\n"
        "`hagane serve` is the place to start: it serves the built-in model on\n"
        "http://127.0.0.1:8000. `hagane COMMAND --help` lists a command's options."
    )


def dispatch(arguments: list[str]) -> int:
    """Run the command that `arguments` begin with. Raises ConfigurationError for an unknown one."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_text())
        return 0 if arguments else 2
    command, *rest = arguments
    if command == "--version":
        print(f"hagane {__version__}")
        return 0
    if command not in COMMANDS:
        hint = nearest(command, COMMANDS) or "."
        raise ConfigurationError(f"there is no command {command!r}{hint} See `hagane --help`")
    module = import_module(module_of(command))
    status: int = module.run(rest)
    return status


def describe(error: ValidationError) -> str:
    """The first problem of settings or options in one line."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        from hagane.system.settings import Settings

        return f"there is no setting {name}{nearest(name, Settings.model_fields)}"
    what = f"setting {name}: " if name else ""
    reason = first["msg"].removeprefix("Value error, ")
    got = f", got {first['input']!r}" if name else ""
    return f"{what}{reason}{got}"


def main() -> None:
    """Run a command; errors that the user can fix are one line on standard error and status 2."""
    try:
        sys.exit(dispatch(sys.argv[1:]))
    except HaganeError as error:
        print(f"hagane: {error}", file=sys.stderr)
    except ValidationError as error:
        print(f"hagane: {describe(error)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
