"""The chat page's conversations, settings, keyboard and key, in a real browser on a real server."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from urllib.parse import quote

from tests.data.test_pdf import make_pdf
from tests.support.server import start_server, stop_server
from tests.web.browser import ANSWERS, choose, manage, send, visit, wait_answer, wait_until


def test_enter_while_composing_does_not_send(page):
    page.focus("#prompt")
    page.evaluate("""() => {
      window.enters = [];
      const note = (e) => e.key === "Enter" && enters.push(e.isComposing);
      document.getElementById("prompt").addEventListener("keydown", note);
    }""")
    devtools = page.context.new_cdp_session(page)
    ime = {"selectionStart": 4, "selectionEnd": 4, "text": "にほんご"}
    devtools.send("Input.imeSetComposition", ime)
    enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
    devtools.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **enter})
    assert page.evaluate("enters") == [True]
    assert page.locator(".message").count() == 0
    devtools.send("Input.insertText", {"text": "日本語"})
    assert page.input_value("#prompt") == "日本語"
    # Safari's order: the composition is over, and only the key code tells.
    page.dispatch_event("#prompt", "keydown", {"key": "Enter", "keyCode": 229})
    assert page.locator(".message").count() == 0
    choose(page, maxTokens=2)
    page.press("#prompt", "Enter")
    wait_answer(page)
    assert page.inner_text(".message.user .text") == "日本語"


def test_shift_enter_starts_a_line_and_blanks_are_not_sent(page):
    page.press("#prompt", "Enter")
    page.fill("#prompt", "  ")
    page.press("#prompt", "Enter")
    assert page.locator(".message").count() == 0
    page.fill("#prompt", "one")
    page.press("#prompt", "Shift+Enter")
    assert page.input_value("#prompt") == "one\n"


def test_settings_reach_the_server(page):
    choose(page, system="Be brief.", temperature=0.5, topP=0.9, topK=40, minP=0.05,
           repetitionPenalty=1.1, maxTokens=2, seed=7)  # fmt: skip
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, "Hi")
    assert asked.value.post_data_json == {
        "model": "endless",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
        ],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "max_completion_tokens": 2,
        "seed": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    wait_answer(page)


def test_adapters_are_grouped_by_what_they_were_tuned_from(page):
    tuned = "ft:endless:house:<b>polite</b>:a1"
    listed = [{"id": "endless"}, {"id": tuned, "parent": "endless"}]
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": listed}))
    page.goto(f"{page.url}#model={quote(tuned)}")
    page.reload()
    page.wait_for_selector("#model optgroup", state="attached")
    assert page.get_attribute("#model optgroup", "label") == "Fine-tuned from endless"
    assert page.locator("#model option").all_inner_texts() == ["endless", tuned]
    assert page.input_value("#model") == tuned
    assert "#" not in page.url
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, "Hi")
    assert asked.value.post_data_json["model"] == tuned
    page.wait_for_selector(".error:has-text('model_not_found')")


def test_retry_and_edit_keep_what_was_there(page):
    choose(page, maxTokens=3, temperature=0)
    send(page, "first")
    wait_answer(page)
    send(page, "second")
    wait_answer(page)
    with page.expect_request("**/v1/chat/completions") as asked:
        page.click(".message.assistant:last-child .retry")
    assert [m["role"] for m in asked.value.post_data_json["messages"]] == [
        "user", "assistant", "user",
    ]  # fmt: skip
    wait_answer(page)
    assert page.inner_text(".message:last-child .count") == "2/2"
    page.click(".message.user >> nth=1 >> .edit")
    field = page.get_by_role("textbox", name="Edit the message")
    assert field.input_value() == "second"
    field.press("Escape")
    said = page.locator(".message.user .text")
    assert said.all_inner_texts() == ["first", "second"]
    page.click(".message.user >> nth=1 >> .edit")
    field.fill("third")
    field.press("Enter")
    page.wait_for_selector(".message.user:has-text('third')")
    wait_answer(page)
    assert said.all_inner_texts() == ["first", "third"]
    assert page.locator(".message").count() == 4
    page.click(".message.user >> nth=1 >> .earlier")
    assert said.all_inner_texts() == ["first", "second"]
    assert page.evaluate("document.activeElement.className") == "later", "the way back"
    assert page.inner_text(".message:last-child .count") == "2/2"
    # An answer can be corrected, and the question before it asked again.
    page.click(".message.assistant >> nth=0 >> .edit")
    field.fill("corrected")
    page.click(".message.assistant .save")
    page.wait_for_selector(".message.assistant:has-text('corrected')")
    assert page.locator(".message").count() == 2
    page.reload()
    page.wait_for_selector(".message.assistant:has-text('corrected')")
    assert page.locator("#conversations .choose").count() == 1


def test_two_tabs_on_one_conversation_keep_all_that_was_said(page, endless):
    choose(page, maxTokens=2)
    send(page, "one")
    wait_answer(page)
    other = page.context.new_page()
    other.goto(endless.url)
    other.wait_for_selector(".message.assistant")
    other.wait_for_selector("#model option", state="attached")
    # Said in both, at once and after another: all of it is there, in both and after a reload.
    send(page, "two")
    send(other, "three")
    for tab in (page, other):
        wait_until(tab, f"({ANSWERS}).filter((one) => one.stats?.exact).length === 3")
        wait_answer(tab)
    send(other, "four")
    wait_answer(other)
    shown = other.locator(".message .text").all_inner_texts()
    assert "one" in shown
    assert "four" in shown
    kept = "Object.keys(localStorage).map((key) => localStorage[key]).join()"
    for tab in (page, other):
        tab.reload()
        tab.wait_for_selector(".message.user:has-text('four')")
        assert all(f'"content":"{word}"' in tab.evaluate(kept) for word in ("two", "three"))
    # What one tab deletes, the other does not bring back.
    manage(page, "remove")
    page.click("#ask .primary")
    other.wait_for_selector("#log:not(:has(.message))", state="attached")
    assert "hagane.message" not in other.evaluate("Object.keys(localStorage).join()")


def test_conversations_are_listed_renamed_exported_and_deleted(page):
    choose(page, maxTokens=2, system="S")
    send(page, "one")
    wait_answer(page)
    page.click("#new-chat")
    assert page.locator(".message").count() == 0
    send(page, "two")
    wait_answer(page)
    names = page.locator("#conversations .choose")
    assert names.all_inner_texts() == ["two", "one"]
    page.click("#conversations .choose:has-text('one')")
    assert page.inner_text(".message.user .text") == "one"
    manage(page, "rename")
    page.fill("#ask-value", "名前。")
    page.press("#ask-value", "Enter")
    page.wait_for_selector("#conversations :text('名前')")
    assert names.all_inner_texts() == ["two", "名前。"]
    with page.expect_download() as got:
        manage(page, "exportJson")
    assert got.value.suggested_filename == "名前.json"
    file = json.loads(Path(got.value.path()).read_text(encoding="utf-8"))
    assert [m["role"] for m in file["messages"]] == ["system", "user", "assistant"]
    manage(page, "remove")
    page.click("#ask .cancel")
    assert names.count() == 2
    manage(page, "remove")
    page.click("#ask .primary")
    page.wait_for_selector("#conversations:not(:has-text('名前'))")
    assert names.all_inner_texts() == ["two"]
    page.reload()
    assert names.all_inner_texts() == ["two"]


def test_conversations_are_searched_and_come_back_from_files(page, tmp_path):
    branch = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Where is the cat?"},
        {"role": "assistant", "content": "In the **garden**."},
    ]
    file = tmp_path / "one.jsonl"
    file.write_text(f"{json.dumps({'messages': branch})}\n", encoding="utf-8")
    page.set_input_files("#import", file)
    page.wait_for_selector(".message.assistant:has-text('In the garden.')")
    page.click("#new-chat")
    choose(page, maxTokens=2)
    send(page, "another")
    wait_answer(page)
    assert page.locator("#conversations h2").all_inner_texts() == ["Today"]
    names = page.locator("#conversations .choose")
    page.keyboard.press("Control+k")
    assert not page.evaluate("document.getElementById('page').inert"), "beside it, not below it"
    page.keyboard.type("GARDEN")
    page.wait_for_selector("#conversations:not(:has-text('another'))")
    assert names.all_inner_texts() == ["Where is the cat?"]
    names.click()
    with page.expect_download() as got:
        manage(page, "exportMarkdown")
    text = Path(got.value.path()).read_text(encoding="utf-8")
    assert "## You\n\nWhere is the cat?\n\n## Assistant\n\nIn the **garden**.\n" in text
    page.fill("#search", "")
    page.click("#list-menu")
    with page.expect_download() as got:
        page.click("#menu .exportAll")
    page.evaluate("localStorage.clear()")
    page.reload()
    assert page.is_visible("#empty")
    page.set_input_files("#import", got.value.path())
    page.wait_for_selector("#conversations .choose >> nth=1")
    assert sorted(names.all_inner_texts()) == ["Where is the cat?", "another"]
    file.write_text('{"conversations": 3}', encoding="utf-8")
    page.set_input_files("#import", file)
    page.wait_for_selector("#notice:has-text('no conversations')")


def test_text_files_go_with_a_message(page, tmp_path):
    names = {"a.txt": "猫".encode("shift_jis"), "b.md": b"```\ncode\n```\n", "c.bin": b"\0\xff"}
    for name, content in names.items():
        (tmp_path / name).write_bytes(content)
    page.set_input_files("#files", [tmp_path / name for name in names])
    page.wait_for_selector("#notice:has-text('c.bin is not taken')")
    assert page.locator("#attached .file").count() == 2
    choose(page, maxTokens=2)
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, "What is it?")
    (message,) = asked.value.post_data_json["messages"]
    assert message["content"] == (
        "a.txt:\n```\n猫\n```\n\nb.md:\n````\n```\ncode\n```\n````\n\nWhat is it?"
    )
    wait_answer(page)
    assert page.locator(".message.user .file").all_inner_texts() == ["a.txt", "b.md"]
    assert not page.is_visible("#notice")
    assert page.locator("#attached .file").count() == 0


def test_examples_and_shortcuts(page):
    page.click("#examples button >> nth=0")
    assert page.input_value("#prompt") == page.inner_text("#examples button >> nth=0")
    choose(page, maxTokens=2)
    page.press("#prompt", "Enter")
    wait_answer(page)
    assert not page.is_visible("#empty")
    page.press("#prompt", "ArrowUp")
    assert page.evaluate("document.activeElement.ariaLabel") == "Edit the message"
    page.keyboard.press("Control+Shift+O")
    page.wait_for_selector("#empty")
    page.keyboard.press("Control+/")
    page.wait_for_selector("#shortcuts[open]")


def test_sliders_and_fields_show_the_same(page):
    page.set_viewport_size({"width": 1280, "height": 600})
    page.click("#open-settings")
    save = page.locator("#settings .primary").bounding_box()
    assert save["y"] + save["height"] < 600, "in sight without scrolling"
    slider, field = page.locator("[data-slides=temperature]"), page.locator("[name=temperature]")
    assert (slider.input_value(), field.input_value()) == ("1", "")
    slider.fill("0.5")
    assert field.input_value() == "0.5"
    field.fill("")
    assert slider.input_value() == "1"


def test_api_key_is_explained_lent_to_other_tabs_and_kept_where_wanted(
    browser, tiny_model_dir, tmp_path
):
    server = start_server(tiny_model_dir, tmp_path / "log", HAGANE_API_KEYS="secret-key")
    server.wait_ready()
    stored = "JSON.stringify(localStorage).includes('secret-key')"
    try:
        with visit(browser, server.url) as page:
            page.wait_for_selector("#key-dialog[open]")
            assert "answers only with a key" in page.inner_text("#key-dialog")
            assert page.evaluate("document.activeElement.name") == "key"
            page.keyboard.type("wrong")
            page.keyboard.press("Enter")
            page.wait_for_selector("#key-refused:visible")
            page.fill("#key-dialog [name=key]", "secret-key")
            page.click("#key-dialog .primary")
            page.wait_for_selector("#model option", state="attached")
            assert not page.locator("#notice").is_visible()
            choose(page, maxTokens=2)
            send(page, "Hi")
            wait_answer(page)
            assert page.locator(".error").count() == 0
            assert page.evaluate(stored) is False
            other = page.context.new_page()
            other.goto(server.url)
            other.wait_for_selector("#model option", state="attached")
            assert not other.locator("#key-dialog").is_visible()
            other.click("#open-settings")
            other.click("#open-key")
            other.check("#key-dialog [name=keep]")
            other.click("#key-dialog .primary")
            wait_until(other, stored)
            assert other.evaluate("sessionStorage.length") == 0
    finally:
        stop_server(server)


def test_on_a_phone_enter_starts_a_line(browser, endless):
    with visit(browser, endless.url, has_touch=True, is_mobile=True) as page:
        page.tap("#prompt")
        page.keyboard.type("one")
        page.keyboard.press("Enter")
        page.keyboard.type("two")
        assert page.input_value("#prompt") == "one\ntwo"
        assert page.get_attribute("#prompt", "enterkeyhint") == "enter"
        assert page.locator(".message").count() == 0


def test_language_and_theme_are_chosen_and_kept(browser, endless):
    with visit(browser, endless.url, locale="ja-JP", color_scheme="dark") as page:
        assert page.inner_text("#send") == "送信"
        assert page.evaluate("document.documentElement.lang") == "ja"
        ground = "getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(ground)
        page.click("#theme")
        light = page.evaluate(ground)
        assert dark == "rgb(21, 24, 27)"
        assert light == "rgb(255, 255, 255)"
        page.click("#language")
        assert page.inner_text("#send") == "Send"
        page.reload()
        page.wait_for_selector("#send:has-text('Send')")
        assert page.evaluate(ground) == light


def test_pdfs_are_read_by_the_server_and_images_refused(page, tmp_path):
    (tmp_path / "a.pdf").write_bytes(make_pdf("Hello from a page"))
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    page.set_input_files("#files", [tmp_path / "a.pdf"])
    if importlib.util.find_spec("pypdf") is None:
        page.wait_for_selector("#notice:has-text('This server reads no PDFs')")
    else:
        page.wait_for_selector("#attached .file:has-text('a.pdf') button")
        choose(page, maxTokens=2)
        with page.expect_request("**/v1/chat/completions") as asked:
            send(page, "What is it?")
        (message,) = asked.value.post_data_json["messages"]
        assert message["content"] == "a.pdf:\n```\nHello from a page\n```\n\nWhat is it?"
    page.set_input_files("#files", [tmp_path / "b.png"])
    page.wait_for_selector("#notice:has-text('read text, no images')")
    assert page.locator("#attached .file").count() == 0
