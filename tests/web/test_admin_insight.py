"""Exports, evals, the log, and pretraining through the pages alone."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from tests.support.engine import make_adapter
from tests.web.browser import STUDIO_KEY, visit, wait_until

HEADERS = {"Authorization": f"Bearer {STUDIO_KEY}"}
SLOW = 60_000
"""Milliseconds for what waits on a process's start."""


@pytest.fixture(scope="module")
def page(browser, studio):
    with visit(browser, f"{studio.url}/admin", "#sign-in:not([hidden])") as page:
        page.fill("#sign-in [name=key]", STUDIO_KEY)
        page.press("#sign-in [name=key]", "Enter")
        page.wait_for_selector("#figures dd")
        yield page


def upload(studio, name, lines):
    text = "\n".join(json.dumps(line) for line in lines)
    files = {"file": (name, text)}
    url, data = f"{studio.url}/v1/files", {"purpose": "fine-tune"}
    answer = httpx.post(url, files=files, data=data, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def open_section(page, name, ready):
    page.evaluate("to => (location.hash = `#/${to}`)", name)
    page.wait_for_selector(ready, state="attached")


def test_the_overview_has_the_load_since_the_start(page):
    open_section(page, "overview", "#chart-machine .line")
    axes = page.locator("#overview .name").all_text_contents()
    for unit in ("tokens per second", "requests", "part of the cache", "minutes"):
        assert unit in axes
    page.select_option("#history-form [name=period]", "24h")
    page.wait_for_selector("#chart-rate :text('No data yet.'), #chart-rate .name:text('hours')")
    page.select_option("#history-form [name=period]", "15m")
    page.wait_for_selector("#chart-machine .line")


def test_an_adapter_is_exported_and_downloaded(page, studio, tiny_model_dir):
    make_adapter(studio.log.parent / "data/loaded", tiny_model_dir, seed=2)
    open_section(page, "models", "#load-form")
    page.click("#models details summary")
    page.fill("#load-form [name=lora_name]", "loaded")
    page.fill("#load-form [name=lora_path]", "loaded")
    page.click("#load-form .primary")
    page.click("#adapter-list .card:has-text('loaded') .makeFile")
    page.select_option("#export-dialog [name=format]", "adapter")
    page.click("#export-dialog .primary")
    page.wait_for_selector("#exports-title:focus")
    page.wait_for_selector("#export-list .badge:has-text('ready')", timeout=SLOW)
    with page.expect_download() as got:
        page.click("#export-list .download")
    assert got.value.suggested_filename == "loaded.zip"
    assert got.value.path().read_bytes()[:2] == b"PK"
    page.click("#export-list .remove")
    page.wait_for_selector("#export-list :text('Nothing here yet.')")


def test_a_model_of_the_store_is_deleted_and_a_hub_that_lacks_one_is_told(page, studio):
    store = studio.log.parent / "store"
    shutil.copytree(store / "second", store / "old")
    open_section(page, "engines", "#pull-fields input")
    page.fill("#pull-form [name=model]", "../nobody")
    page.click("#pull-form .primary")
    page.wait_for_selector("#pull-error:not([hidden])")
    assert page.evaluate("document.activeElement.name") == "model"
    page.click("#engine-list .card:has(h3:has-text('old')) .remove")
    page.click("#ask .primary")
    page.wait_for_selector("#engine-list h3:has-text('old')", state="detached")
    assert not (store / "old").exists()


def test_models_are_compared_on_an_eval(page, studio):
    messages = [{"role": "user", "content": "猫は?"}, {"role": "assistant", "content": "います。"}]
    upload(studio, "cats.jsonl", [{"messages": messages}] * 3)
    open_section(page, "evals", "#eval-fields [name=file] option")
    page.click("#new-eval > summary")
    page.fill("#eval-form [name=name]", "cats")
    page.select_option("#eval-form [name=grader]", "graderSimilar")
    page.click("#eval-form .primary")
    page.wait_for_selector("#eval-title:has-text('cats')")
    page.wait_for_selector("#run-models option", state="attached")
    page.select_option("#run-models [name=first]", "tiny")
    page.select_option("#run-models [name=second]", "second")
    page.fill("#run-models [name=max_completion_tokens]", "4")
    page.click("#run-form .primary")
    page.wait_for_selector("#run-table tbody tr >> nth=1")
    done = "document.querySelectorAll('#run-table .badge.succeeded').length === 2"
    for _ in range(4):
        if page.evaluate(done):
            break
        page.wait_for_timeout(1000)
    wait_until(page, done)
    second = page.inner_text("#run-table tbody tr >> nth=1")
    assert "50\u00a0% (" in second, "the same weights say the same: every item is a tie"
    page.wait_for_selector("#run-answers .card >> nth=2")
    answers = page.locator("#run-answers .card >> nth=0 >> .answers .said").all_text_contents()
    assert len(answers) == 2
    assert answers[0] == answers[1]


def test_days_and_steps_are_not_divided(page):
    """One day or three steps, for all of which there would be room for tenths."""
    ticks = """async ([low, high, least]) => {
      const { ticks } = await import("/web/admin/chart.js");
      return ticks(low, high, 8, least);
    }"""
    assert 0.2 in page.evaluate(ticks, [0, 1, 0])
    assert page.evaluate(ticks, [-1, 0, 1]) == [-1, 0]
    assert page.evaluate(ticks, [1, 3, 1]) == [1, 2, 3]
    assert page.evaluate(ticks, [0, 40, 1]) == [0, 5, 10, 15, 20, 25, 30, 35, 40]
    day = datetime.now(UTC).date() - timedelta(days=2)
    use = {"day": str(day), "label": "key", "name": None, "requests": 1, "refused": 0,
           "prompt_tokens": 5, "generated_tokens": 3}  # fmt: skip
    page.route("**/admin/key_usage?*", lambda route: route.fulfill(json={"data": [use]}))
    open_section(page, "keys", "#chart-use svg")
    labels = page.locator("#chart-use text[text-anchor=middle]").all_text_contents()
    page.unroute("**/admin/key_usage?*")
    assert labels[-3:] == ["-2", "-1", "0"]


def test_the_log_is_filtered(page):
    open_section(page, "logs", "#log-list p")
    page.fill("#log-form [name=text]", "is ready on")
    page.wait_for_selector("#log-list p:has-text('is ready on')")
    assert page.locator("#log-list p").count() == 1
    page.select_option("#log-form [name=level]", "error")
    wait_until(page, "document.querySelectorAll('#log-list p').length === 0")
    page.select_option("#log-form [name=level]", "info")
    page.wait_for_selector("#log-list p:has-text('hagane.server.app')")


def test_a_model_is_pretrained_and_trained_further(page, studio):
    upload(studio, "sums.jsonl", [{"text": f"{n} plus 1 is {n + 1}."} for n in range(300)])
    open_section(page, "jobs", "#pretrain-texts input")
    page.click("#pretrain > summary")
    page.check("#pretrain-texts label:has-text('sums.jsonl') input")
    given = {"name": "sums", "parameters": "100K", "vocab_size": "300", "sequence_length": "32",
             "batch_rows": "2", "steps": "8"}  # fmt: skip
    for name, value in given.items():
        page.fill(f"#pretrain-form [name={name}]", value)
    assert page.inner_text("#pretrain-size") == "512 tokens in all."
    page.click("#pretrain-form .primary")
    page.wait_for_selector("#pretrain-error:has-text('warmup_steps')")
    page.click("#pretrain details > summary")
    page.fill("#pretrain-form [name=warmup_steps]", "2")
    page.uncheck("#pretrain-form [name=compile]")
    page.fill("#pretrain-form [name=held_out]", "0.1")
    page.select_option("#pretrain-form [name=promote]", "always")
    page.click("#pretrain-form .primary")
    cancel(page, "sums")
    page.evaluate("document.getElementById('pretrain').open = true")
    names = page.locator("#pretrain-form [name=start_from] option").all_text_contents()
    assert names[:2] == ["a new model", "tiny"]
    page.select_option("#pretrain-form [name=start_from]", label="tiny")
    assert page.is_disabled("#pretrain-form [name=parameters]")
    page.fill("#pretrain-form [name=name]", "tiny-further")
    with page.expect_request(lambda request: request.method == "POST") as asked:
        page.click("#pretrain-form .primary")
    config = asked.value.post_data_json["config"]
    assert config["start_from"] == "tiny"
    assert not {"parameters", "vocab_size"} & config.keys()
    cancel(page, "tiny-further")


def cancel(page, name):
    """The job that was just made is shown; it need not end by itself."""
    page.wait_for_selector(f"#job-title:has-text('{name}')")
    page.click("#job-head .cancelJob")
    page.click("#ask .primary")
    page.wait_for_selector("#job-title .badge:has-text('cancelled')", timeout=SLOW)
    open_section(page, "jobs", "#pretrain-form [name=start_from] option")
