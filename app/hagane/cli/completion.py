"""`hagane completion`: scripts by which shells complete commands and options."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from hagane.cli.command import Options, read
from hagane.cli.main import COMMANDS, module_of

_INSTALL = """\
bash:  hagane completion bash > ~/.local/share/bash-completion/completions/hagane
zsh:   hagane completion zsh >> ~/.zshrc
fish:  hagane completion fish > ~/.config/fish/completions/hagane.fish"""


class CompletionOptions(Options):
    """Print a script by which a shell completes commands and options."""

    shell: CliPositionalArg[Literal["bash", "zsh", "fish"]] = Field(description="the shell")


def run(arguments: list[str]) -> int:
    """Print the script."""
    shell = read(CompletionOptions, arguments, "completion", epilog=_INSTALL).shell
    words = {command: _words(command) for command in COMMANDS}
    print(_fish(words) if shell == "fish" else _bash(words, zsh=shell == "zsh"))
    return 0


def _words(command: str) -> list[str]:
    """What may follow a command: its options and its actions, as its help lists them."""
    help_text = io.StringIO()
    module = import_module(module_of(command))
    with contextlib.redirect_stdout(help_text), contextlib.suppress(SystemExit):
        module.run(["--help"])
    options = re.findall(r"^  (?:-\w, )?(--[\w-]+)", help_text.getvalue(), re.MULTILINE)
    actions = re.search(r"^usage: .*\{([\w,]+)\}", help_text.getvalue())
    return [*(actions[1].split(",") if actions else []), *options]


def _bash(words: Mapping[str, Sequence[str]], *, zsh: bool) -> str:
    cases = "\n".join(
        f"        {command}) words='{' '.join(known)}' ;;" for command, known in words.items()
    )
    # zsh runs bash's completions by a module of its own.
    load = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
    return f"""\
{load if zsh else ""}_hagane() {{
    local words current="${{COMP_WORDS[COMP_CWORD]}}"
    case "$([ "$COMP_CWORD" -gt 1 ] && echo "${{COMP_WORDS[1]}}")" in
        '') words='{" ".join(words)}' ;;
{cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _hagane hagane"""


def _fish(words: Mapping[str, Sequence[str]]) -> str:
    lines = [
        f"complete -c hagane -n __fish_use_subcommand -f -a {command} -d '{_quoted(summary)}'"
        for command, summary in COMMANDS.items()
    ]
    for command, known in words.items():
        seen = f"complete -c hagane -n '__fish_seen_subcommand_from {command}'"
        lines += [
            f"{seen} -l {word.removeprefix('--')}" if word.startswith("--") else f"{seen} -a {word}"
            for word in known
        ]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")
