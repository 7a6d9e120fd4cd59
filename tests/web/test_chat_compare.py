"""Two answers side by side, of which the better one is picked."""

from __future__ import annotations

import httpx

from tests.web.browser import ANSWERS, choose, send, visit, wait_until

BOTH = "document.querySelectorAll('#log[aria-busy=false] .message.compared .better').length === 2"


def compare(page, text):
    """Ask both models, and wait until both have answered."""
    if page.get_attribute("#compare", "aria-pressed") == "false":
        page.click("#compare")
    send(page, text)
    wait_until(page, BOTH)


def test_the_better_answer_is_picked(page, endless):
    choose(page, maxTokens=6, temperature=1.5)
    assert not page.is_visible("#second")
    compare(page, "Hi")
    first, second = page.locator(".message.compared").all()
    boxes = [one.bounding_box() for one in (first, second)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    texts = [one.locator("> .text").inner_text().strip() for one in (first, second)]
    in_order = f"({ANSWERS}).sort((a, b) => a.at - b.at).map((one) => one.completion)"
    completions = page.evaluate(in_order)
    second.locator(".better").click()
    wait_until(page, "!document.querySelector('.compared')")
    assert page.inner_text(".message.assistant > .text") == texts[1]
    assert page.inner_text(".message.assistant .count") == "2/2"
    given = httpx.get(f"{endless.url}/v1/feedback").json()["data"][0]
    assert (given["completion_id"], given["preferred_over"]) == tuple(reversed(completions))
    httpx.delete(f"{endless.url}/v1/feedback/{given['id']}").raise_for_status()
    page.click("#compare")
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, "Go on")
    said = [message["content"].strip() for message in asked.value.post_data_json["messages"]]
    assert said == ["Hi", texts[1], "Go on"]
    page.wait_for_selector("#log[aria-busy=false] .message:nth-child(4)")
    assert page.locator(".compared").count() == 0


def test_another_model_is_offered_to_compare_with(browser, studio):
    with visit(browser, studio.url) as page:
        page.wait_for_selector("#second option >> nth=1", state="attached")
        assert page.input_value("#model") == "tiny"
        page.click("#compare")
        assert page.input_value("#second") != "tiny"


def test_stop_ends_both_and_a_reload_keeps_them(page):
    page.click("#compare")
    send(page, "Hi")
    wait_until(
        page, "document.querySelectorAll('.compared.writing > .text:not(:empty)').length === 2"
    )
    page.press("#prompt", "Escape")
    wait_until(page, BOTH)
    page.reload()
    wait_until(page, BOTH)
    assert page.is_visible("#second")
    assert page.get_attribute("#compare", "aria-pressed") == "true"
    choose(page, maxTokens=2)
    page.click("#compare")
    send(page, "Without picking")
    page.wait_for_selector("#log[aria-busy=false] .message:nth-child(4)")
    assert page.locator(".compared").count() == 0
    assert page.locator(".message.assistant").first.locator(".count").inner_text() == "1/2"


def test_on_a_phone_they_stand_below_each_other(page):
    page.set_viewport_size({"width": 390, "height": 700})
    choose(page, maxTokens=4)
    compare(page, "Hi")
    first, second = (one.bounding_box() for one in page.locator(".message.compared").all())
    assert first["y"] + first["height"] <= second["y"]
    assert page.evaluate("document.scrollingElement.scrollWidth") == 390
    assert page.evaluate("document.getElementById('log').scrollWidth") <= 390
