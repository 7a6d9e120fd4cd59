"""The Markdown renderer, inside the page that uses it: what it understands and what it refuses."""

from __future__ import annotations

import time

import pytest

from tests.web.browser import visit

RENDER = """async (text) => {
  const { renderMarkdown } = await import("/web/chat/markdown.js");
  const box = document.createElement("div");
  document.body.append(box);
  renderMarkdown(box, text);
  const html = box.innerHTML;
  box.remove();
  return html;
}"""


PROBE = """async (text) => {
  const { renderMarkdown } = await import("/web/chat/markdown.js");
  const box = document.createElement("div");
  box.id = "probe";
  document.getElementById("log").append(box);
  renderMarkdown(box, text);
}"""


@pytest.fixture(scope="module")
def page(browser, server):
    with visit(browser, server.url) as page:
        yield page


@pytest.fixture
def render(page):
    return lambda text: page.evaluate(RENDER, text)


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a\nb", "<p>a<br>b</p>"),
        ("a\n\nb", "<p>a</p><p>b</p>"),
        ("# one\n#### two", "<h3>one</h3><h4>two</h4>"),
        ("#tag", "<p>#tag</p>"),
        ("## closed ##", "<h3>closed</h3>"),
        ("**bold** *it* ~~no~~", "<p><strong>bold</strong> <em>it</em> <s>no</s></p>"),
        ("__bold__ _it_", "<p><strong>bold</strong> <em>it</em></p>"),
        ("***both***", "<p><em><strong>both</strong></em></p>"),
        ("**a *b***", "<p><strong>a <em>b</em></strong></p>"),
        ("**「強調」**です", "<p><strong>「強調」</strong>です</p>"),
        ("snake_case_name 2 * 3 * 4", "<p>snake_case_name 2 * 3 * 4</p>"),
        ("**open", "<p>**open</p>"),
        (r"\*not\* \<b>", "<p>*not* &lt;b&gt;</p>"),
        ("`a*b*` ``x ` y``", "<p><code>a*b*</code> <code>x ` y</code></p>"),
        ("- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("> q\n> r", "<blockquote><p>q<br>r</p></blockquote>"),
        ("a\n\n---\nb", "<p>a</p><hr><p>b</p>"),
        ("a<br>b<BR />c", "<p>a<br>b<br>c</p>"),
        ("H<sub>2</sub>O <sup>**2**</sup>", "<p>H<sub>2</sub>O <sup><strong>2</strong></sup></p>"),
        ("<b>open <b x=1>", "<p>&lt;b&gt;open &lt;b x=1&gt;</p>"),
        ("&copy; &#x3042;&#12356; &lt;b&gt;", "<p>© あい &lt;b&gt;</p>"),
        ("`&amp;`", "<p><code>&amp;amp;</code></p>"),
        ("&nope; &#0; &#xD800; &valueOf;", "<p>&amp;nope; &amp;#0; &amp;#xD800; &amp;valueOf;</p>"),
        ("costs $5, or $10 with tax; 5$ in US$", "<p>costs $5, or $10 with tax; 5$ in US$</p>"),
        ("$100円と$", "<p>$100円と$</p>"),
    ],
)  # fmt: skip
def test_understands(render, text, html):
    assert render(text) == html


def test_code_is_text_with_a_copy_button(page, render):
    html = render("```py\nif a < b:\n\tprint('<b>')\n```\nafter")
    assert "<code>if a &lt; b:\n\tprint('&lt;b&gt;')</code>" in html
    assert '<span>py</span><button class="copy" type="button">Copy</button>' in html
    assert html.endswith("<p>after</p>")
    assert "<code>still\n\nopen</code>" in render("```\nstill\n\nopen")


def test_copy_button_copies(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(PROBE, "~~~\nx = 1\n~~~")
    page.click("#probe .copy")
    page.wait_for_selector("#probe .copy:has-text('Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == "x = 1"
    # As on plain http in a local network: no clipboard is lent.
    page.evaluate(
        "Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })"
    )
    page.evaluate("document.getElementById('probe').remove()")
    page.evaluate(PROBE, "~~~\ny = 2\n~~~")
    page.click("#probe .copy")
    page.wait_for_selector("#probe .copy:has-text('Copied')")
    page.evaluate("delete navigator.clipboard")
    assert page.evaluate("navigator.clipboard.readText()") == "y = 2"
    page.evaluate("document.getElementById('probe').remove()")


def test_tables(render):
    html = render("| a | b |\n|:-:|--:|\n| `x` | 1 |\n| y |\n\nend")
    assert '<th class="align-center">a</th><th class="align-end">b</th>' in html
    assert '<td class="align-center"><code>x</code></td><td class="align-end">1</td>' in html
    assert '<td class="align-center">y</td><td colspan="1"></td>' in html
    assert html.endswith("<p>end</p>")


def test_the_cells_that_a_row_lacks_are_one(page, render):
    text = "|" + "a|" * 2000 + "\n|" + "-|" * 2000 + "\n" + "|b\n" * 2000
    started = time.monotonic()
    html = render(text)
    assert time.monotonic() - started < 5
    assert html.count("<t") < 15_000


def test_tasks(render):
    html = render("- [ ] buy\n- [x] **read**\n- [y] no")
    assert '<span class="task" role="img" aria-label="to do">☐</span> buy' in html
    assert 'aria-label="done">☑</span> <strong>read</strong>' in html
    assert "<li>[y] no</li>" in html


FORMULAS = r"""The energy \(E\) and $x_1^2$:
\[
E
- mc^2
\]
and \[ F \] too.

$$\int_0^1 x\,dx$$

\(\notacommand{x}\) \[ never closed"""


def test_formulas_are_typeset_and_keep_their_source(page):
    page.evaluate(PROBE, FORMULAS)
    page.wait_for_selector("#probe .katex")
    sources = page.locator("#probe annotation").all_text_contents()
    assert [source.strip() for source in sources] == [
        "E", "x_1^2", "E\n- mc^2", "F", r"\int_0^1 x\,dx"
    ]  # fmt: skip
    assert page.locator("#probe .formula.display").count() == 3
    # What is no formula, and what is not finished, stays as it was written.
    shown = page.inner_text("#probe > :last-child")
    assert r"\(\notacommand{x}\)" in shown
    assert "[ never closed" in shown
    page.evaluate("document.getElementById('probe').remove()")


def test_code_has_colours(page):
    code = "def f(x):\n    return '<b>' # why"
    page.evaluate(PROBE, f"```python\n{code}\n```\n\n```unknown\nx\n```")
    page.wait_for_selector("#probe .token-keyword")
    assert page.inner_text("#probe code >> nth=0") == code
    assert page.locator("#probe .token-string").all_inner_texts() == ["'<b>'"]
    assert page.locator("#probe code >> nth=1 >> span").count() == 0
    page.evaluate("document.getElementById('probe').remove()")


def test_links_leave_safely(render):
    html = render("[site](https://example.org/a?b=1) and http://example.org/x。次")
    rel = 'target="_blank" rel="noopener noreferrer"'
    assert f'<a href="https://example.org/a?b=1" {rel}>site</a>' in html
    assert f'<a href="http://example.org/x" {rel}>http://example.org/x</a>。次' in html


HOSTILE = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<svg/onload=window.hacked=1>",
    "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
    "[x](javascript:window.hacked=1)",
    "[x](JaVaScRiPt:window.hacked=1)",
    "[x](java\u0001script:window.hacked=1)",
    "[x](\u0001javascript:window.hacked=1)",
    "[x](data:text/html,<script>window.hacked=1</script>)",
    "[x](vbscript:window.hacked=1)",
    "[x](//example.org)",
    "[x](https://\"onmouseover=window.hacked=1)",
    "[a\"onclick=window.hacked=1](https://example.org/\"onclick=window.hacked=1)",
    "![x](javascript:window.hacked=1)",
    "![x](https://example.org/beacon.png?secret)",
    "<https://example.org/\" onclick=window.hacked=1>",
    "```html\n</code></pre><script>window.hacked=1</script>\n```",
    "```\"><img src=x onerror=window.hacked=1>\nx\n```",
    "`<img src=x onerror=window.hacked=1>`",
    "| <img src=x onerror=window.hacked=1> |\n|---|\n| <script>window.hacked=1</script> |",
    "# <img src=x onerror=window.hacked=1>",
    "- <img src=x onerror=window.hacked=1>\n  > <svg onload=window.hacked=1>",
    "<style>*{display:none}</style><form action=//example.org><input name=key>",
    "<a href=javascript:window.hacked=1>click</a> &lt;script&gt; &#x3c;script>",
    "__proto__ constructor [__proto__](https://example.org)",
]  # fmt: skip
FORBIDDEN = "script, img, svg, iframe, style, form, input, object, embed, link, meta, base, video"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(page, text):
    found = page.evaluate(
        """async ([text, forbidden]) => {
          const { renderMarkdown } = await import("/web/chat/markdown.js");
          const box = document.createElement("div");
          document.body.append(box);
          renderMarkdown(box, text);
          for (const link of box.querySelectorAll("a")) link.dispatchEvent(new Event("mouseover"));
          await new Promise((done) => setTimeout(done, 30));
          const all = [...box.querySelectorAll("*")];
          const found = {
            forbidden: box.querySelectorAll(forbidden).length,
            handlers: all.flatMap((e) => e.getAttributeNames()).filter((n) => n.startsWith("on")),
            links: [...box.querySelectorAll("a")].map((a) => a.protocol),
            hacked: "hacked" in window,
          };
          box.remove();
          return found;
        }""",
        [text, FORBIDDEN],
    )
    assert found["forbidden"] == 0
    assert found["handlers"] == []
    assert set(found["links"]) <= {"https:", "http:"}
    assert not found["hacked"]


@pytest.mark.parametrize(
    "unit",
    ["*", "**a ", "_a", "[", "[a](", "`", "> ", "- ", "|", "#", "<", "~~~", "a|b\n-|-\n", "  - x\n",
     "***", "$", "$x ", "\\(", "\\[\n", "&amp", "<sub>", "<b", "http://", "\\",
     "```\n", "1. ", "* * "],
)  # fmt: skip
def test_hostile_repetition_costs_little(page, render, unit):
    text = unit * (40_000 // len(unit))
    started = time.monotonic()
    render(text)
    assert time.monotonic() - started < 3


def test_a_growing_answer_keeps_finished_blocks(page):
    kept = page.evaluate("""async () => {
      const { renderMarkdown } = await import("/web/chat/markdown.js");
      const box = document.createElement("div");
      renderMarkdown(box, "one\\n\\ntw");
      const [first, second] = box.children;
      renderMarkdown(box, "one\\n\\ntwo");
      return [box.children[0] === first, box.children[1] === second, box.textContent];
    }""")
    assert kept == [True, False, "onetwo"]


def test_any_prefix_of_a_stream_renders(page, render):
    text = "# T\n\n- **a** `b`\n  ```py\n  x\n  ```\n\n| a |\n|---|\n| [l](https://e.org) |\n> q"
    for end in range(len(text) + 1):
        render(text[:end])
