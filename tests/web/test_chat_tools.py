"""Tools on the chat page: switched on, called by a model, run by the server, shown and kept."""

from __future__ import annotations

import json

import pytest

from tests.support.server import stop_server
from tests.support.tools import TOOL_TEMPLATE, serve
from tests.web.browser import manage, send, visit, wait_answer


def chunks(*deltas):
    said = [{"id": "c1", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
            for delta in deltas]  # fmt: skip
    return "".join(f"data: {event}\n\n" for event in [*map(json.dumps, said), "[DONE]"])


def calling(name, arguments, index=0):
    """The pieces in which a call comes."""
    first = {"index": index, "id": f"call_{index}", "type": "function",
             "function": {"name": name, "arguments": ""}}  # fmt: skip
    half = len(arguments) // 2
    pieces = [{"index": index, "function": {"arguments": piece}}
              for piece in (arguments[:half], arguments[half:])]  # fmt: skip
    return [{"tool_calls": [piece]} for piece in (first, *pieces)]


@pytest.fixture(scope="module")
def tool_server(tiny_model_dir, tmp_path_factory):
    """The tiny model with a template that shows tools."""
    running = serve(tiny_model_dir, tmp_path_factory.mktemp("tools"), TOOL_TEMPLATE)
    yield running
    stop_server(running)


@pytest.fixture
def model(page):
    """Answers, each a list of deltas, in turn; the last one again and again. The bodies sent."""
    answers, bodies = [], []

    def answer(route):
        bodies.append(route.request.post_data_json)
        deltas = answers.pop(0) if len(answers) > 1 else answers[0]
        route.fulfill(content_type="text/event-stream", body=chunks(*deltas))

    page.route("**/v1/chat/completions", answer)
    return answers, bodies


def switch_on(page, *names):
    page.click("#use-tools")
    for name in names:
        page.check(f"#tool-list input[value={name}]")
    page.keyboard.press("Escape")


def test_a_tool_is_off_until_it_is_switched_on(page, model):
    answers, bodies = model
    answers.append([{"content": "ok"}])
    send(page, "Hi")
    wait_answer(page)
    switch_on(page, "calculator")
    send(page, "Again")
    page.wait_for_selector("#log[aria-busy=false] .message:nth-child(4)")
    assert "tools" not in bodies[0]
    (tool,) = bodies[1]["tools"]
    assert (tool["type"], tool["function"]["name"]) == ("function", "calculator")
    assert set(tool) == {"type", "function"}
    assert page.get_attribute("#use-tools", "aria-label") == "Tools: 1 on"
    page.click("#use-tools")
    assert page.is_checked("#tool-list input[value=calculator]")
    assert not page.is_checked("#tool-list input[value=clock]")


def test_each_conversation_has_tools_of_its_own_by_keyboard_alone(page, model):
    answers, bodies = model
    answers.append([{"content": "ok"}])
    page.focus("#use-tools")
    page.keyboard.press("Enter")
    page.wait_for_selector("#tool-menu:popover-open")
    assert page.evaluate("document.activeElement.value") == "calculator"
    page.keyboard.press("Space")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "use-tools"
    send(page, "With")
    wait_answer(page)
    page.click("#new-chat")
    assert page.get_attribute("#use-tools", "aria-label") == "Tools: 1 on"
    page.click("#use-tools")
    page.uncheck("#tool-list input[value=calculator]")
    page.keyboard.press("Escape")
    send(page, "Without")
    wait_answer(page)
    page.click("#conversations .choose:has-text('With') >> nth=-1")
    page.reload()
    page.wait_for_selector("#use-tools[aria-label='Tools: 1 on']")
    send(page, "Again")
    page.wait_for_selector("#log[aria-busy=false] .message:nth-child(4)")
    names = [[tool["function"]["name"] for tool in body.get("tools", [])] for body in bodies]
    assert names == [["calculator"], [], ["calculator"]]


def test_a_conversation_from_before_there_were_tools_has_none(page, model):
    answers, bodies = model
    answers.append([{"content": "ok"}])
    switch_on(page, "calculator")
    send(page, "Old")
    wait_answer(page)
    page.evaluate("""() => {
      const key = Object.keys(localStorage).find((one) => one.startsWith("hagane.conversation."));
      const { tools, ...older } = JSON.parse(localStorage[key]);
      localStorage[key] = JSON.stringify(older);
    }""")
    page.reload()
    page.wait_for_selector("#use-tools[aria-label='Tools: 0 on']")
    send(page, "Again")
    page.wait_for_selector("#log[aria-busy=false] .message:nth-child(4)")
    assert ["tools" in body for body in bodies] == [True, False]


def test_a_choice_outlives_the_absence_of_its_tool(page, model):
    """As while an MCP server is down."""
    answers, bodies = model
    answers.append([{"content": "ok"}])
    switch_on(page, "clock")
    send(page, "With")
    wait_answer(page)

    def without_clock(route):
        offered = route.fetch().json()
        tools = [one for one in offered["data"] if one["function"]["name"] != "clock"]
        route.fulfill(json={**offered, "data": tools})

    page.route("**/v1/tools", without_clock)
    page.reload()
    page.wait_for_selector("#use-tools[aria-label='Tools: 0 on']")
    page.click("#use-tools")
    gone = page.locator("#tool-list label:has-text('clock')")
    assert "not available" in gone.inner_text()
    assert gone.locator("input").is_checked()
    page.check("#tool-list input[value=calculator]")
    page.keyboard.press("Escape")
    send(page, "Without")
    page.wait_for_selector("#log[aria-busy=false] .message:nth-child(4)")
    page.unroute("**/v1/tools")
    page.reload()
    page.wait_for_selector("#use-tools[aria-label='Tools: 2 on']")
    send(page, "Both")
    page.wait_for_selector("#log[aria-busy=false] .message:nth-child(6)")
    names = [{tool["function"]["name"] for tool in body["tools"]} for body in bodies]
    assert names == [{"clock"}, {"calculator"}, {"calculator", "clock"}]


def test_calls_are_run_shown_sent_and_kept(page, model):
    answers, bodies = model
    both = [*calling("calculator", '{"expression": "6*7"}'), *calling("clock", "{}", 1)]
    answers += [[{"reasoning_content": "Hm."}, {"content": "Let me see."}, *both],
                [{"content": "It is **42**."}]]  # fmt: skip
    switch_on(page, "calculator", "clock")
    send(page, "What is 6 times 7?")
    assert wait_answer(page) == "It is 42."
    assert page.locator(".steps > *").count() == 4
    assert page.inner_text(".steps > .text") == "Let me see."
    first, second = page.locator(".call").all()
    assert first.locator("summary").inner_text() == "calculator was used"
    assert not first.locator("pre").first.is_visible()
    first.locator("summary").click()
    shown = [pre.inner_text() for pre in first.locator("pre").all()]
    assert shown == ['{\n  "expression": "6*7"\n}', "42"]
    assert "UTC" in second.locator("pre").last.text_content()

    asked = bodies[1]["messages"]
    assert [message["role"] for message in asked] == ["user", "assistant", "tool", "tool"]
    assert [call["function"]["name"] for call in asked[1]["tool_calls"]] == ["calculator", "clock"]
    assert (asked[1]["content"], asked[2]["content"]) == ("Let me see.", "42")
    assert [message["tool_call_id"] for message in asked[2:]] == ["call_0", "call_1"]

    page.reload()
    page.wait_for_selector(".call")
    assert page.locator(".steps > *").count() == 4
    send(page, "Thanks")
    page.wait_for_selector("#log[aria-busy=false] .message:nth-child(4)")
    roles = [message["role"] for message in bodies[2]["messages"]]
    assert roles == ["user", "assistant", "tool", "tool", "assistant", "user"]


def test_exports_have_the_calls(page, model, tmp_path):
    answers, _ = model
    answers += [calling("calculator", '{"expression": "6*7"}'), [{"content": "It is 42."}]]
    switch_on(page, "calculator")
    send(page, "6 times 7?")
    wait_answer(page)
    for choice, suffix in (("exportMarkdown", "md"), ("exportJson", "json")):
        with page.expect_download() as kept:
            manage(page, choice)
        kept.value.save_as(tmp_path / f"kept.{suffix}")
    text = (tmp_path / "kept.md").read_text(encoding="utf-8")
    assert '> calculator {"expression": "6*7"}\n\n```\n42\n```\n\nIt is 42.' in text
    roles = [one["role"] for one in json.loads((tmp_path / "kept.json").read_text())["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant"]
    page.set_input_files("#import", tmp_path / "kept.json")
    page.wait_for_selector("#conversations li:nth-child(2)")
    assert page.inner_text(".call summary") == "calculator was used"
    assert page.inner_text(".message.assistant > .text") == "It is 42."


def test_what_a_tool_could_not_do_is_told_to_the_model_and_the_user(page, model):
    answers, bodies = model
    failing = [*calling("calculator", '{"expression": "1/0"}'), *calling("clock", "{no JSON", 1),
               *calling("nothing", "{}", 2)]  # fmt: skip
    answers += [failing, [{"content": "Sorry."}]]
    switch_on(page, "calculator")
    send(page, "Try")
    assert wait_answer(page) == "Sorry."
    assert page.locator(".call.failed").count() == 3
    results = [one["content"] for one in bodies[1]["messages"] if one["role"] == "tool"]
    assert results == ["division by zero", "The arguments are no JSON.",
                       "There is no tool 'nothing'."]  # fmt: skip


def test_a_model_that_only_calls_is_stopped(page, model):
    answers, bodies = model
    answers += [calling("calculator", f'{{"expression": "{turn}"}}') for turn in range(10)]
    switch_on(page, "calculator")
    send(page, "Go")
    page.wait_for_selector(".stats:has-text('went on calling tools')")
    assert page.locator(".call").count() == 8
    assert [body.get("tool_choice") for body in bodies] == [None] * 8 + ["none"]


def test_a_call_made_before_is_the_last(page, model):
    answers, bodies = model
    again = calling("calculator", '{"expression": "1"}')
    answers += [again, again, [{"content": "Once is enough."}]]
    switch_on(page, "calculator")
    send(page, "Go")
    assert wait_answer(page) == "Once is enough."
    assert [body.get("tool_choice") for body in bodies] == [None, None, "none"]


def test_stop_while_a_tool_runs(page, model):
    answers, _ = model
    answers.append(calling("calculator", '{"expression": "1"}'))
    held = []
    page.route("**/v1/tools/call", lambda route: held.append(route))
    switch_on(page, "calculator")
    send(page, "Go")
    page.wait_for_selector(".call summary:has-text('calculator is running')")
    page.press("#prompt", "Escape")
    page.wait_for_selector("#log[aria-busy=false] .stats:has-text('Stopped.')")
    assert len(held) == 1
    page.unroute("**/v1/tools/call")


def test_calls_of_an_answer_that_ended_are_not_running(page, model):
    """As where the limit of tokens comes amid the calls, or the tab is closed."""
    answers, _ = model
    answers.append(calling("calculator", '{"expression": "1"}'))
    cut = {"id": "c1", "choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
    body = chunks(*answers[0]).replace("data: [DONE]", f"data: {json.dumps(cut)}\n\ndata: [DONE]")
    page.unroute("**/v1/chat/completions")
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(content_type="text/event-stream", body=body),
    )
    switch_on(page, "calculator")
    send(page, "Go")
    page.wait_for_selector("#log[aria-busy=false] .stats:has-text('Cut short')")
    assert page.inner_text(".call summary") == "calculator was not run"
    page.reload()
    page.wait_for_selector(".call summary:has-text('was not run')")


def test_a_model_without_tools_says_so(page):
    switch_on(page, "clock")
    send(page, "Hi")
    page.wait_for_selector(".message.assistant .error:has-text('cannot use tools')")


def test_a_real_model_calls_a_real_tool(browser, tool_server):
    """The tiny model writes noise, unless a grammar has it call: the first turn is made to."""
    with visit(browser, tool_server.url) as page:
        asked = []

        def force(route):
            body = route.request.post_data_json
            first = not asked
            asked.append(body)
            named = {"type": "function", "function": {"name": "clock"}}
            changes = {"tool_choice": named} if first else {"max_completion_tokens": 4}
            route.continue_(post_data=json.dumps({**body, **changes, "seed": 1}))

        page.route("**/v1/chat/completions", force)
        page.wait_for_selector("#model option", state="attached")
        switch_on(page, "clock")
        send(page, "What time is it?")
        wait_answer(page)
        assert page.locator(".call").count() == 1
        assert [one["role"] for one in asked[1]["messages"]] == ["user", "assistant", "tool"]
