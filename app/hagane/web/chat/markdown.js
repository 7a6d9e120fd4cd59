/**
 * The block half of the Markdown renderer, and the only way a model's text gets into the page.
 *
 * A text is split into top-level blocks, each a piece of source and how to read it. While an answer
 * streams in, only blocks whose source changed are built again: selections and focus survive.
 */

import { button, classed, element, scrolling } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { appendInline } from "./inline.js";

const DEEPEST = 8;
/* No pattern has two neighbours that match the same text: none takes quadratic time to fail. */
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=\s|$)/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( +|$)/;
const DELIMITER = /^:?-+:?$/;

/** @typedef {{kind: string, lines: string[], level?: number, key: string}} Block */

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

/**
 * The blocks of `text`. Headings never skip a level and start at h3, below those of the page.
 * @param {string} text
 * @returns {Block[]}
 */
export function splitBlocks(text) {
  const lines = splitLines(text);
  const blocks = [];
  let heading = 2;
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [kind, end] = measure(lines, at);
    const block = { kind, lines: lines.slice(at, end) };
    if (kind === "heading") {
      heading = Math.min(HEADING.exec(lines[at])[1].length + 2, heading + 1, 6);
      block.level = heading;
    }
    block.key = [kind, block.level ?? "", ...block.lines].join("\n");
    blocks.push(block);
    at = end;
  }
  return blocks;
}

/** Lines whose indentation is spaces, except in code, where a tab is a tab. */
function splitLines(text) {
  let fence = "";
  return text.split(/\r\n?|\n/).map((line) => {
    const mark = /^\s*(`{3,}|~{3,})/.exec(line)?.[1] ?? "";
    if (fence ? mark.startsWith(fence) : mark) fence = fence ? "" : mark;
    return fence ? line : line.replace(/^[ \t]+/, (indent) => indent.replaceAll("\t", "    "));
  });
}

/** The kind of the block that starts at line `at`, and the line after it. */
function measure(lines, at) {
  const fence = FENCE.exec(lines[at]);
  if (fence) return ["code", endOfFence(lines, at, fence[1])];
  if (HEADING.test(lines[at])) return ["heading", at + 1];
  if (RULE.test(lines[at])) return ["rule", at + 1];
  if (QUOTE.test(lines[at])) return ["quote", takeWhile(lines, at, (line) => QUOTE.test(line))];
  if (isTable(lines, at)) return ["table", takeWhile(lines, at + 2, (line) => line.includes("|"))];
  if (ITEM.test(lines[at])) return ["list", endOfList(lines, at)];
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !interrupts(lines, end)) end += 1;
  return ["paragraph", end];
}

function takeWhile(lines, at, holds) {
  let end = at;
  while (end < lines.length && lines[end].trim() && holds(lines[end])) end += 1;
  return end;
}

function endOfFence(lines, at, mark) {
  for (let end = at + 1; end < lines.length; end += 1) {
    const line = lines[end].trim();
    if (line.startsWith(mark) && line === mark[0].repeat(line.length)) return end + 1;
  }
  // Still streaming, or never closed: everything that follows is code.
  return lines.length;
}

function endOfList(lines, at) {
  const numbered = /\d/.test(ITEM.exec(lines[at])[2]);
  let end = at + 1;
  for (; end < lines.length; end += 1) {
    const line = lines[end];
    const item = ITEM.exec(line);
    if (item && !RULE.test(line) && /\d/.test(item[2]) === numbered) continue;
    if (/^ {2,}\S/.test(line)) continue;
    if (!line.trim() && continues(lines, end + 1, numbered)) continue;
    if (line.trim() && lines[end - 1].trim() && !interrupts(lines, end)) continue;
    break;
  }
  return end;
}

function continues(lines, at, numbered) {
  const item = ITEM.exec(lines[at] ?? "");
  return /^ {2,}\S/.test(lines[at] ?? "") || (item && /\d/.test(item[2]) === numbered);
}

function isTable(lines, at) {
  if (!lines[at].includes("|") || !lines[at + 1]?.includes("-")) return false;
  const delimiters = cells(lines[at + 1]);
  return delimiters.every((cell) => DELIMITER.test(cell))
    && cells(lines[at]).length === delimiters.length;
}

function interrupts(lines, at) {
  const line = lines[at];
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some((start) => start.test(line)) || isTable(lines, at);
}

function build(block, depth) {
  if (depth >= DEEPEST) return paragraph(block);
  return BUILDERS[block.kind](block, depth);
}

const BUILDERS = { code, heading, rule, quote, table, list, paragraph };

function paragraph({ lines }) {
  const made = element("p");
  appendInline(made, lines.map((line) => line.trim()).join("\n"));
  return made;
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
  const pre = scrolling(element("pre", element("code", text)), t("code"));
  const name = element("span", info.trim().split(/\s+/)[0].slice(0, 30));
  const copy = button("copy", () => copyText(text, copy));
  return classed("div", "code", classed("div", "code-head", name, copy), pre);
}

/**
 * Put `text` on the clipboard and say so on `button` for a moment.
 * @param {string} text
 * @param {HTMLButtonElement} button
 */
export async function copyText(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = t("copied");
  } catch {
    // Browsers lend the clipboard to secure pages only; http on another host is not one.
    button.textContent = t("copyFailed");
  }
  setTimeout(() => (button.textContent = before), 1500);
}

function list({ lines }, depth) {
  const numbered = /\d/.test(ITEM.exec(lines[0])[2]);
  const made = element(numbered ? "ol" : "ul");
  if (numbered) made.start = Number.parseInt(ITEM.exec(lines[0])[2], 10);
  for (const item of items(lines)) {
    const entry = element("li");
    appendBlocks(entry, item, depth + 1);
    // A single paragraph is a tight item: its text needs no paragraph of its own.
    const only = entry.children.length && entry.firstChild.tagName === "P" ? entry.firstChild : null;
    if (only && [...entry.children].filter((child) => child.tagName === "P").length === 1) {
      only.replaceWith(...only.childNodes);
    }
    made.append(entry);
  }
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

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table({ lines }) {
  const sides = cells(lines[1]).map((cell) => {
    if (/^:-*:$/.test(cell)) return "center";
    return cell.endsWith(":") ? "end" : "start";
  });
  const row = (line, tag) => element("tr", ...sides.map((side, index) => {
    const cell = classed(tag, `align-${side}`);
    appendInline(cell, cells(line)[index] ?? "");
    return cell;
  }));
  const body = element("tbody", ...lines.slice(2).map((line) => row(line, "td")));
  const grid = element("table", element("thead", row(lines[0], "th")), body);
  return scrolling(classed("div", "table", grid), t("table"));
}
