"""The rules for any page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

CONTROLS = {"button", "textbox", "combobox", "link", "spinbutton", "listbox", "checkbox", "dialog",
            "navigation", "complementary", "log", "region"}  # fmt: skip
# Each text's colour on what is really behind it; borders of controls on what is around them.
CONTRAST = r"""() => {
  const parse = (text) => text.match(/[\d.]+/g).map(Number);
  const light = (part) => {
    const value = part / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  };
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const ratio = (one, two) => {
    const [dark, bright] = [luminance(one), luminance(two)].sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05);
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const shown = (element) => element.checkVisibility({ visibilityProperty: true });
  const weak = [];
  const check = (element, color, behind, least, what) => {
    const found = ratio(parse(color), behind);
    if (found < least) weak.push([what, element.outerHTML.slice(0, 80), found]);
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let texts = 0;
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !shown(element)) continue;
    texts += 1;
    check(element, getComputedStyle(element).color, ground(element), 4.5, "text");
  }
  for (const field of document.querySelectorAll("input, textarea, select")) {
    if (!shown(field)) continue;
    check(field, getComputedStyle(field).borderTopColor, ground(field.parentElement), 3, "border");
    const hint = getComputedStyle(field, "::placeholder").color;
    check(field, hint, ground(field), 4.5, "placeholder");
  }
  return { weak, texts };
}"""
FOCUS = """() => {
  const element = document.activeElement;
  const style = getComputedStyle(element);
  // The message field has the focus nearly always: its box changes colour, and has no ring.
  const box = element.closest(".box");
  const accent = getComputedStyle(document.querySelector(".primary")).borderTopColor;
  const marked = element.matches("textarea") && box
    && getComputedStyle(box).borderTopColor === accent;
  return {
    name: element.id || element.className || element.tagName,
    outlined: marked || (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2),
    // Links within running text may be as low as the text (WCAG 2.5.8).
    size: element.matches(".text a, p a, h3 a")
      ? 24
      : Math.min(element.offsetWidth, element.offsetHeight),
  };
}"""
REFERENCES = """() => {
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  const broken = ids.filter((id, index) => ids.indexOf(id) !== index);
  for (const name of ["for", "aria-controls", "aria-describedby", "aria-labelledby"]) {
    for (const element of document.querySelectorAll(`[${name}]`)) {
      if (!document.getElementById(element.getAttribute(name))) broken.push(name);
    }
  }
  return broken;
}"""


def nodes(page: Page) -> list[tuple[str, str]]:
    """The accessibility tree as the browser hands it to screen readers: (role, name)."""
    devtools = page.context.new_cdp_session(page)
    tree = devtools.send("Accessibility.getFullAXTree")["nodes"]
    devtools.detach()
    return [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if not node["ignored"]
    ]


def unnamed(page: Page) -> list[str]:
    """The roles of controls that screen readers have no name for."""
    found = [(role, name) for role, name in nodes(page) if role in CONTROLS]
    assert len(found) >= 3
    return [role for role, name in found if not name.strip()]


def weak(page: Page) -> list[Any]:
    """Texts and borders that are too close to what is behind them."""
    found = page.evaluate(CONTRAST)
    assert found["texts"] > 5
    return found["weak"]


def tab_around(page: Page, last: str) -> list[dict[str, Any]]:
    """The controls that Tab reaches from `last` around to it again, across the page's end."""
    page.focus(f"#{last}")
    reached: list[dict[str, Any]] = []
    while not reached or reached[-1]["name"] != last:
        page.keyboard.press("Tab")
        focus = page.evaluate(FOCUS)
        if focus["name"] != "BODY":
            reached.append(focus)
        assert len(reached) < 150
    return reached
