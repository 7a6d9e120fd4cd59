"""`hagane completion` in the shells that are there."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hagane.cli.main import COMMANDS, dispatch


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "hagane.bash"
    with pytest.MonkeyPatch.context() as patch, path.open("w") as file:
        patch.setattr("sys.stdout", file)
        assert dispatch(["completion", "bash"]) == 0
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("hagane ser", {"serve"}),
        ("hagane ''", set(COMMANDS)),
        ("hagane models p", {"pull"}),
        ("hagane serve --quant", {"--quantize"}),
        ("hagane jobs w", {"watch"}),
    ],
)
def test_bash_completes(bash_script, words, completed):
    script = (
        f"source {bash_script}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
        "_hagane; echo ${COMPREPLY[@]}"
    )
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) == completed


def test_fish_has_every_command(capsys):
    assert dispatch(["completion", "fish"]) == 0
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert f"-a {command} -d" in shown
    assert "-n '__fish_seen_subcommand_from serve' -l quantize" in shown
