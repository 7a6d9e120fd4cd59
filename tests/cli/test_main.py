"""The command line as a user meets it."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hagane.cli.command import read
from hagane.cli.evaluate import read_options
from hagane.cli.main import COMMANDS, describe, dispatch
from hagane.evaluation.run import Evaluation
from hagane.system.errors import ConfigurationError, HaganeError
from hagane.system.setting_groups import GROUPS
from hagane.system.settings import Settings
from pydantic import ValidationError

from tests.support.server import hagane


def test_serve_help_explains_every_setting():
    shown = hagane("serve", "--help").stdout
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert field.description.split()[0] in shown


MISTAKES = [
    (["serve", "--port", "99999"], {}, "port"),
    (["serve"], {"HAGANE_QUANTIZE": "int3"}, "quantize"),
    (["serve"], {"HAGANE_MODLE": "x"}, "HAGANE_MODLE"),
    (["serve"], {"HAGANE_CONFIG": "/nonexistent.toml"}, "/nonexistent.toml"),
    (["serve", "--model", "no-such-model"], {}, "no-such-model"),
    (["serve", "--device", "tpu"], {}, "tpu"),
    (["pretrain", "/nonexistent.toml"], {}, "/nonexistent.toml"),
]


def test_mistakes_are_one_line_and_status_2():
    """Several at a time, since each is a process."""
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda mistake: hagane(*mistake[0], **mistake[1]), MISTAKES)
    for (arguments, environment, part), result in zip(MISTAKES, results, strict=True):
        assert result.returncode == 2, (arguments, environment)
        (line,) = result.stderr.strip().splitlines()
        assert line.startswith("hagane: ")
        assert part in line


def test_toml_environment_and_flags_in_order_of_precedence(tmp_path, monkeypatch):
    file = tmp_path / "hagane.toml"
    file.write_text('port = 1\nhost = "127.0.0.2"\nmax_sequences = 3\n')
    monkeypatch.setenv("HAGANE_CONFIG", str(file))
    monkeypatch.setenv("HAGANE_PORT", "2")
    monkeypatch.setenv("HAGANE_HOST", "127.0.0.3")
    arguments = ["--port", "3", "--kv-cache-memory", "2GiB", "--group-size", "64"]
    settings = read(Settings, arguments, "serve")
    assert (settings.port, settings.host, settings.max_sequences) == (3, "127.0.0.3", 3)
    assert int(settings.kv_cache_memory) == 2 << 30
    assert settings.group_size == 64


def test_no_command_says_what_to_do(capsys):
    assert dispatch([]) == 2
    assert "`hagane serve` is the place to start" in capsys.readouterr().out
    assert dispatch(["--help"]) == dispatch(["--version"]) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command, capsys):
    """Plain types, and the sentence that the list of commands has."""
    with pytest.raises(SystemExit) as ended:
        dispatch([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: hagane {command} ")
    assert COMMANDS[command] in shown
    for internal in ("ByteSize", "SecretStr", "None", "null", "str}", "list["):
        assert internal not in shown


def test_every_setting_is_below_one_heading():
    placed = [name for names in GROUPS.values() for name in names]
    assert sorted(placed) == sorted(Settings.model_fields)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["srve"], "did you mean serve?"),
        (["zzz"], "there is no command 'zzz'. See `hagane --help`"),
        (["serve", "--modle", "x"], "did you mean --model?"),
        (["serve", "--prefix-cache"], "prefix-cache"),
        (["serve", "--port"], "--port"),
        (["serve", "stray"], "stray"),
        (["doctor", "--max-sequence-s", "1"], "did you mean --max-sequences?"),
        (["chat", "--temprature", "1"], "did you mean --temperature?"),
        (["quantize", "a", "b"], "one of --int8, --int4 and --fp8"),
        (["quantize", "a", "b", "--int8", "--int4"], "one of --int8, --int4 and --fp8"),
        (["quantize", "a", "b", "--int4", "--group-size", "48"], "group_size"),
        (["quantize", "a"], "DESTINATION"),
        (["eval", "hagane-mini"], "--text or --questions"),
        (["bench", "hagane-mini", "--streams", "many"], "streams"),
        (["finetune", "f.jsonl"], "--model"),
        (["merge"], "required"),
    ],
)
def test_mistakes_name_what_was_probably_meant(arguments, part):
    with pytest.raises((HaganeError, ValidationError)) as caught:
        dispatch(arguments)
    error = caught.value
    line = describe(error) if isinstance(error, ValidationError) else str(error)
    assert part in line
    assert "\n" not in line


def test_a_misspelt_variable_or_key_is_told_the_right_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HAGANE_MODLE", "x")
    with pytest.raises(ConfigurationError, match=r"did you mean HAGANE_MODEL\?"):
        dispatch(["serve"])
    monkeypatch.delenv("HAGANE_MODLE")
    file = tmp_path / "hagane.toml"
    file.write_text("max_sequence = 3\n")
    monkeypatch.setenv("HAGANE_CONFIG", str(file))
    with pytest.raises(ValidationError) as caught:
        dispatch(["serve"])
    assert describe(caught.value) == "there is no setting max_sequence; did you mean max_sequences?"


def test_fine_tuning_leaves_nothing_behind_when_its_file_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (["missing.jsonl"], ["here.jsonl", "--validation-file", "missing.jsonl"]):
        (tmp_path / "here.jsonl").touch()
        with pytest.raises(ConfigurationError, match=r"missing\.jsonl is not a file"):
            dispatch(["finetune", *arguments, "--model", "hagane-mini"])
    assert [path.name for path in tmp_path.iterdir()] == ["here.jsonl"]


def test_lists_of_files_are_read_one_after_the_other():
    options = read_options(["hagane-mini", "--text", "a,b.txt", "c", "--limit", "2"])
    assert options.plan == Evaluation((Path("a,b.txt"), Path("c")), (), 2)


def test_asking_for_help_imports_no_torch():
    code = (
        "import sys, hagane.cli.main as m\n"
        "try: m.dispatch(['serve', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'fastapi', 'hagane.server.app')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr


def test_chat_streams_from_a_running_server(server):
    result = hagane(
        "chat", "--url", server.url, "--temperature", "0", text="Hello\n/reset\n/quit\n"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_chat_without_a_server_says_so():
    result = hagane("chat", "--url", "http://127.0.0.1:9")
    assert result.returncode == 2
    assert "hagane serve" in result.stderr
