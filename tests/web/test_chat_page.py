"""Answers on the chat page: written, stopped, interrupted, refused and harmless, in a browser."""

from __future__ import annotations

import json
import re
import time

import httpx
import pytest

from tests.support.server import start_server
from tests.web.browser import ANSWERS, choose, send, visit, wait_answer, wait_until

WRITTEN = "document.querySelector('.writing .text')?.textContent.length > 20"
WATCH = """() => {
  window.lengths = new Set();
  new MutationObserver(() => {
    const text = document.querySelector(".message.assistant:last-child .text");
    if (text) lengths.add(text.textContent.length);
  }).observe(document.getElementById("log"), { subtree: true, childList: true });
}"""


def test_streams_an_answer_in_japanese(page):
    choose(page, temperature=0, maxTokens=40)
    page.evaluate(WATCH)
    send(page, "あなたは誰ですか。")
    answer = wait_answer(page)
    assert re.search(r"[ぁ-んァ-ヶ一-龠]", answer)
    assert "\ufffd" not in answer
    assert len(page.evaluate("[...lengths]")) >= 3, "the answer did not grow as it was written"
    stats = page.inner_text(".message.assistant .stats")
    assert re.search(r"limit of tokens was reached\. · 40 tokens · [\d.]+ tokens/s", stats)
    assert re.search(r"first after [\d.]+ s · \d+ in the prompt", stats)
    assert page.inner_text(".message.user .text") == "あなたは誰ですか。"


def test_stop_in_mid_stream(page, endless):
    send(page, "Tell me a story.")
    wait_until(page, WRITTEN)
    assert page.inner_text("#send") == "Stop"
    page.click("#send")
    answer = wait_answer(page)
    assert page.inner_text(".message.assistant .stats").startswith("Stopped. · ≈")
    deadline = time.monotonic() + 10
    while endless.metric("hagane_requests_running"):
        assert time.monotonic() < deadline, "the server did not notice the stop"
        time.sleep(0.05)
    assert page.inner_text(".message.assistant .text") == answer
    assert page.inner_text("#send") == "Send"
    choose(page, maxTokens=3)
    send(page, "Again, please.")
    wait_answer(page)
    assert page.locator(".message").count() == 4


def test_escape_stops(page):
    send(page, "Tell me a story.")
    page.wait_for_selector(".writing .text:not(:empty)")
    page.press("#prompt", "Escape")
    wait_answer(page)
    assert "Stopped." in page.inner_text(".message.assistant .stats")


def test_an_answer_is_judged(page, endless):
    choose(page, maxTokens=5)
    send(page, "Hello")
    wait_answer(page)
    for name, other in (("good", "bad"), ("bad", "good")):
        page.click(f".message.assistant .{name}")
        page.wait_for_selector(f".message.assistant .{name}[aria-pressed=true]")
        assert page.get_attribute(f".message.assistant .{other}", "aria-pressed") == "false"
        assert page.evaluate("document.activeElement.className") == name
    given = httpx.get(f"{endless.url}/v1/feedback").json()["data"]
    assert [feedback["thumbs"] for feedback in given] == ["down"]
    page.reload()
    page.wait_for_selector(".message.assistant .bad[aria-pressed=true]")


def test_an_answer_interrupted_by_a_reload_goes_on(page):
    choose(page, maxTokens=400)
    send(page, "物語を聞かせて。")
    wait_until(page, WRITTEN)
    page.reload()
    page.wait_for_selector(".message.assistant .resume")
    assert page.inner_text(".message.user .text") == "物語を聞かせて。"
    came = page.inner_text(".message.assistant .text")
    assert len(came) > 20
    assert page.inner_text(".message.assistant .stats").startswith("Interrupted.")
    assert page.inner_text("#conversations .choose") == "物語を聞かせて。"
    choose(page, maxTokens=8)
    with page.expect_request("**/v1/chat/completions") as asked:
        page.click(".resume")
    body = asked.value.post_data_json
    assert body["continue_final_message"] is True
    assert body["messages"][-1]["role"] == "assistant"
    whole = wait_answer(page)
    assert whole.startswith(came[:20])
    assert len(whole) > len(came)
    assert page.locator(".message").count() == 2


def test_an_answer_goes_on_while_another_conversation_is_read(page):
    choose(page, maxTokens=60)
    send(page, "long")
    page.wait_for_selector(".writing")
    page.click("#new-chat")
    assert page.locator(".message").count() == 0
    assert page.inner_text("#send") == "Send"
    wait_until(page, f"({ANSWERS})[0]?.stats?.exact")
    page.click("#conversations .choose:has-text('long')")
    assert "60 tokens" in page.inner_text(".message.assistant .stats")


def stream(page, *deltas):
    """Have the next answers consist of these deltas."""
    chunks = [
        {"id": "c1", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for delta in deltas
    ]
    body = "".join(f"data: {event}\n\n" for event in [*map(json.dumps, chunks), "[DONE]"])
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(content_type="text/event-stream", body=body),
    )


@pytest.mark.parametrize(
    "deltas",
    [
        [{"reasoning_content": "*Hm*, "}, {"reasoning_content": "yes."}, {"content": "42"}],
        [{"content": "<think>*Hm*, "}, {"content": "yes.</think>\n\n42"}],
    ],
)
def test_reasoning_is_folded(page, deltas):
    stream(page, *deltas)
    send(page, "Why?")
    page.wait_for_selector("#log[aria-busy=false] .message.assistant")
    assert page.inner_text(".message.assistant > .text") == "42"
    assert not page.locator(".reasoning .text").is_visible()
    assert page.inner_text(".reasoning summary").startswith("Thought")
    page.click(".reasoning summary")
    assert page.inner_text(".reasoning .text") == "Hm, yes."
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, "And?")
    assert "Hm" not in json.dumps(asked.value.post_data_json)


def test_a_busy_server_is_waited_for(page):
    refused = []

    def refuse(route):
        refused.append(1)
        if len(refused) != 2:
            headers = {"Retry-After": "1" if len(refused) == 1 else "60"}
            body = {"error": {"message": "Full.", "code": "rate_limit_exceeded"}}
            route.fulfill(status=429 if len(refused) == 1 else 503, headers=headers, json=body)
        else:
            route.fallback()

    page.route("**/v1/chat/completions", refuse)
    choose(page, maxTokens=2)
    send(page, "Hi")
    page.wait_for_selector(".waiting:has-text('Trying again in 1 s.')")
    assert wait_answer(page)
    assert page.locator(".waiting, .error").count() == 0
    send(page, "Again")
    page.wait_for_selector(".waiting:has-text('in 60 s.')")
    page.click(".tryNow")
    page.wait_for_selector(".waiting:has-text('in 60 s.')")
    page.click(".giveUp")
    page.wait_for_selector("#log[aria-busy=false] .message:last-child .stats:has-text('Stopped.')")
    assert len(refused) == 4


def test_a_refusal_is_explained_in_the_pages_language(page):
    choose(page, maxTokens=5000)
    send(page, "Hi")
    page.wait_for_selector(".message.assistant [role=alert]")
    shown = page.inner_text("[role=alert].error")
    assert shown.startswith("The conversation is longer than the model can read.")
    assert "This model's maximum context length is 1024 tokens." in shown
    assert "HTTP 400 · context_length_exceeded · messages" in shown
    page.click("#language")
    assert page.inner_text(".error").startswith("会話がモデルの読める長さを超えています。")
    page.click("#language")
    choose(page, maxTokens=2)
    page.click(".retry")
    wait_answer(page)
    assert page.locator(".error").count() == 0


def test_a_lost_connection_is_told_and_keeps_what_came(browser, endless_dir, tmp_path):
    server = start_server(endless_dir, tmp_path / "log")
    server.wait_ready()
    with visit(browser, server.url) as page:
        send(page, "Tell me a story.")
        wait_until(page, WRITTEN)
        server.process.kill()
        server.process.wait()
        answer = wait_answer(page)
        assert len(answer) > 20
        assert "could not be reached" in page.inner_text(".error")
        page.click(".retry")
        page.wait_for_selector(".message.assistant:last-child .error")
        assert page.locator(".message").count() == 2


def test_hostile_model_output_runs_nothing(page):
    text = "<img src=x onerror='hacked=1'> <script>hacked=1</script> [x](javascript:hacked=1)"
    pieces = [*text, "\n\n```html\n<svg onload=hacked=1>\n```"]
    stream(page, *({"content": piece} for piece in pieces))
    send(page, "<img src=x onerror='hacked=1'>")
    assert text in wait_answer(page)
    assert page.inner_text(".message.user .text") == "<img src=x onerror='hacked=1'>"
    assert page.inner_text("#conversations .choose") == "<img src=x onerror='hacked=1'>"
    page.reload()
    page.wait_for_selector(".message.assistant")
    assert page.locator("#log .text :is(img, script, svg, a)").count() == 0
    assert page.evaluate("'hacked' in window") is False


@pytest.mark.parametrize(
    "mistake",
    [
        "document.body.innerHTML = text",
        "document.write(text)",
        "document.body.insertAdjacentHTML('beforeend', text)",
        "document.createElement('img').setAttribute('onerror', 'window.hacked = 1')",
        "document.createElement('script').textContent = 'window.hacked = 1'",
        "document.createElement('iframe').srcdoc = text",
        "window.setTimeout('window.hacked = 1')",
    ],
)
def test_the_policy_stops_what_a_mistake_would_let_through(browser, endless, mistake):
    context = browser.new_context()
    page = context.new_page()
    page.goto(endless.url)
    outcome = page.evaluate(
        f"""() => {{
          const text = "<img src=x onerror='window.hacked = 1'>";
          try {{ {mistake}; return "done"; }} catch (error) {{ return error.name; }}
        }}"""
    )
    assert outcome in ("TypeError", "EvalError")
    assert page.evaluate("'hacked' in window") is False
    context.close()
