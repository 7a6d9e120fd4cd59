/**
 * The block half of the Markdown renderer, and the only way a model's text gets into the page.
 *
 * A text is split into top-level blocks, each a piece of source and how to read it. While an answer
 * streams in, only blocks whose source changed are built again: selections and focus survive.
 */

import { copyText } from "../shared/clipboard.js";
import { button, classed, element, scrolling } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { FENCE, ITEM, QUOTE, cells, splitBlocks } from "./blocks.js";
import { diagram } from "./diagram.js";
import { formula as typeset } from "./formula.js";
import { highlight } from "./highlight.js";
import { appendInline } from "./inline.js";

const TASK = /^\[([ xX])\](?=\s|$)/;

const DEEPEST = 8;

/** The keys of the blocks that a container shows. @type {WeakMap<HTMLElement, string[]>} */
const rendered = new WeakMap();

/**
 * Show `text` inside `container`, keeping the elements of blocks that did not change.
 * @param {HTMLElement} container
 * @param {string} text Markdown, trusted in no way
 */
export function renderMarkdown(container, text) {
  const blocks = splitBlocks(text);
  const shown = rendered.get(container) ?? [];
  let same = 0;
  while (same < shown.length && shown[same] === blocks[same]?.key) same += 1;
  while (container.childNodes.length > same) container.lastChild.remove();
  for (const block of blocks.slice(same)) container.append(build(block, 0));
  rendered.set(container, blocks.map((block) => block.key));
}

function build(block, depth) {
  if (depth >= DEEPEST) return paragraph(block);
  return BUILDERS[block.kind](block, depth);
}

const BUILDERS = { code, formula, heading, rule, quote, table, list, paragraph };

function paragraph({ lines }) {
  const made = element("p");
  appendInline(made, lines.map((line) => line.trim()).join("\n"));
  return made;
}

function formula({ lines }) {
  const source = lines.map((line) => line.trim()).join("\n");
  return element("p", typeset(source.slice(2, -2), source, true));
}

function heading({ lines, level }) {
  const made = element(`h${level ?? 6}`);
  appendInline(made, lines[0].trim().replace(/^#+/, "").trim().replace(/(^|\s)#+$/, ""));
  return made;
}

function rule() {
  return element("hr");
}

function quote({ lines }, depth) {
  const made = element("blockquote");
  appendBlocks(made, lines.map((line) => line.replace(QUOTE, "")), depth + 1);
  return made;
}

function appendBlocks(parent, lines, depth) {
  for (const block of splitBlocks(lines.join("\n"))) parent.append(build(block, depth));
}

function code({ lines }) {
  const [, mark, info] = FENCE.exec(lines[0]);
  const last = lines.at(-1).trim();
  const closed = lines.length > 1 && last.startsWith(mark) && last === mark[0].repeat(last.length);
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  const language = info.trim().split(/\s+/)[0].slice(0, 30);
  const pre = scrolling(element("pre", highlight(text, language)), t("code"));
  const name = element("span", language);
  const copy = button("copy", () => copyText(text, copy));
  const head = classed("div", "code-head", name, copy);
  if (language.toLowerCase() !== "mermaid" || !closed) return classed("div", "code", head, pre);
  const { shown, toggle } = diagram(text, pre);
  name.after(toggle);
  return classed("div", "code", head, shown, pre);
}

function list({ lines }, depth) {
  const numbered = /\d/.test(ITEM.exec(lines[0])[2]);
  const made = element(numbered ? "ol" : "ul");
  if (numbered) made.start = Number.parseInt(ITEM.exec(lines[0])[2], 10);
  for (const item of items(lines)) {
    const entry = element("li");
    const task = TASK.exec(item[0]);
    if (task) item[0] = item[0].slice(task[0].length);
    appendBlocks(entry, item, depth + 1);
    // A single paragraph is a tight item: its text needs no paragraph of its own.
    const only = entry.children.length && entry.firstChild.tagName === "P" ? entry.firstChild : null;
    if (only && [...entry.children].filter((child) => child.tagName === "P").length === 1) {
      only.replaceWith(...only.childNodes);
    }
    if (task) entry.prepend(box(task[1] !== " "), " ");
    made.append(entry);
  }
  return made;
}

/** A box to tick, which nobody can tick here: it says what the model says. */
function box(ticked) {
  const made = classed("span", "task", ticked ? "☑" : "☐");
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", t(ticked ? "ticked" : "unticked"));
  return made;
}

/** The lines of each item, without its marker and indentation. */
function items(lines) {
  const found = [];
  const outer = ITEM.exec(lines[0])[1].length;
  let indent = 0;
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= outer + 1) {
      indent = item[0].trimEnd().length + 1;
      found.push([line.slice(item[0].length)]);
    } else {
      const spaces = line.length - line.trimStart().length;
      found.at(-1).push(line.slice(Math.min(spaces, indent)));
    }
  }
  return found;
}

function table({ lines }) {
  const sides = cells(lines[1]).map((cell) => {
    if (/^:-*:$/.test(cell)) return "center";
    return cell.endsWith(":") ? "end" : "start";
  });
  // Rows have the cells that are written, and one for all that are not: a narrow row under a wide
  // head costs what it is long, not what the head is.
  const row = (line, tag) => {
    const written = cells(line).slice(0, sides.length);
    const made = element("tr", ...written.map((text, index) => {
      const cell = classed(tag, `align-${sides[index]}`);
      appendInline(cell, text);
      return cell;
    }));
    if (written.length < sides.length) {
      made.append(element("td"));
      made.lastChild.colSpan = sides.length - written.length;
    }
    return made;
  };
  const body = element("tbody", ...lines.slice(2).map((line) => row(line, "td")));
  const grid = element("table", element("thead", row(lines[0], "th")), body);
  return scrolling(classed("div", "table", grid), t("table"));
}
