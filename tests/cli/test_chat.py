"""`hagane chat` against a real server."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import subprocess
import sys

import httpx
import pytest
from hagane.cli.terminal import MarkdownView, finished_blocks
from rich.console import Console

from tests.support.server import clean_environment


def chat(url: str, typed: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hagane.cli", "chat", "--url", url, *flags]
    return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=60)


def test_answers_are_those_of_the_api(server):
    done = chat(server.url, "Hello\n", "--temperature", "0")
    assert done.returncode == 0, done.stderr
    model = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
    body = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
    text = answer["choices"][0]["message"]["content"]
    assert text.strip() in done.stdout


def test_no_server_is_one_line_and_status_2():
    done = chat("http://127.0.0.1:9", "Hello\n")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "http://127.0.0.1:9" in done.stderr


def test_a_wrong_model_is_said_and_the_chat_goes_on(server):
    done = chat(server.url, "Hello\n", "--model", "nobody")
    assert "nobody" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_commands_choose_show_and_forget(server):
    model = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
    typed = f"/model\n/model {model}\n/system Be brief.\n/system\n/temperature 0\n/help\n"
    done = chat(server.url, typed)
    assert done.returncode == 0, done.stderr
    assert f"* {model}" in done.stdout
    assert "Be brief." in done.stdout
    assert "/retry" in done.stdout and "/save FILE" in done.stdout
    assert done.stderr == ""


def test_a_wrong_command_names_the_one_that_was_meant(server):
    done = chat(server.url, "/modle x\n/model nobody\n/temperature warm\n/save\n/retry\n")
    assert done.returncode == 0
    wrong, model, temperature, save, retry = done.stderr.splitlines()
    assert "/modle" in wrong and "/model?" in wrong
    assert "nobody" in model
    assert "'warm'" in temperature
    assert "/save FILE" in save
    assert "nothing was asked" in retry


def test_a_conversation_is_retried_and_saved(server, tmp_path):
    file = tmp_path / "talk.md"
    typed = f"/temperature 0\nHello\n/retry\n/save {file}\n/reset\n/save {file}\n"
    done = chat(server.url, typed, "--system", "Be brief.")
    assert f"{file} exists" in done.stderr
    saved = file.read_text()
    assert saved.count("## User\n\nHello\n") == 1
    assert saved.startswith("## System\n\nBe brief.\n")
    answer = saved.partition("## Assistant\n\n")[2].strip()
    assert done.stdout.count(answer) == 2


@pytest.mark.parametrize("typed", ['"""\none\ntwo\n"""\n', "one\\\ntwo\n"])
def test_a_message_of_several_lines(server, tmp_path, typed):
    file = tmp_path / "talk.md"
    chat(server.url, f"{typed}/save {file}\n")
    assert "## User\n\none\ntwo\n" in file.read_text()


def test_on_a_terminal_there_are_figures_and_a_history(server, tmp_path):
    primary, secondary = pty.openpty()
    command = [sys.executable, "-m", "hagane.cli", "chat", "--url", server.url]
    environment = clean_environment() | {"XDG_STATE_HOME": str(tmp_path), "TERM": "xterm"}
    with subprocess.Popen(
        command, stdin=secondary, stdout=secondary, stderr=secondary, env=environment,
        start_new_session=True,
    ) as process:  # fmt: skip
        os.close(secondary)
        shown = b""
        for typed, wanted in (("Hello\n", b"tokens per second"), ("/quit\n", None)):
            os.write(primary, typed.encode())
            while wanted is not None and wanted not in shown:
                shown += os.read(primary, 4096)
        with contextlib.suppress(OSError):  # the end of a terminal
            while os.read(primary, 4096):
                pass
        assert process.wait(20) == 0
    history = tmp_path / "hagane/chat_history"
    assert "Hello" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_blocks_of_markdown_are_finished_by_a_blank_line_outside_of_code():
    text = "One\n\n```python\na = 1\n\nb = 2\n```\n\nTwo"
    assert finished_blocks(text) == (text.removesuffix("Two"), "Two")
    assert finished_blocks("```\na\n\nb") == ("", "```\na\n\nb")
    assert finished_blocks("- one\n\n- two") == ("", "- one\n\n- two")


def test_markdown_shows_all_of_an_answer_once():
    console = Console(file=io.StringIO(), width=40)
    view = MarkdownView(console)
    with view:
        view.reason("Let me think.")
        for piece in ("# Ti", "tle\n\nSome **bo", "ld** text\n\n", "and the end"):
            view.add(piece)
    shown = console.file.getvalue()
    for part in ("Let me think.", "Title", "Some bold text", "and the end"):
        assert shown.count(part) == 1, shown
