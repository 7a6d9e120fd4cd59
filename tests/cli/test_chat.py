"""`hagane chat` against a real server."""

from __future__ import annotations

import subprocess
import sys

import httpx


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
