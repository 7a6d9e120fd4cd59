/** Splitting Markdown into its top-level blocks: pieces of source, and how each is read. */

/* No pattern has two neighbours that match the same text: none takes quadratic time to fail. */
export const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=\s|$)/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
export const QUOTE = /^ {0,3}> ?/;
export const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( +|$)/;
const DELIMITER = /^:?-+:?$/;
/** What ends the formula that each of these begins. */
const FORMULAS = { "$$": "$$", "\\[": "\\]" };
const LONGEST_FORMULA = 100;

/** @typedef {{kind: string, lines: string[], level?: number, key: string}} Block */

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
  const formula = endOfFormula(lines, at);
  if (formula) return ["formula", formula];
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

/** The line after the formula that is all of the lines from `at`; 0 where none begins, or none ends. */
function endOfFormula(lines, at) {
  const first = lines[at].trim();
  const closing = FORMULAS[first.slice(0, 2)];
  if (!closing) return 0;
  for (let end = at; end < Math.min(lines.length, at + LONGEST_FORMULA); end += 1) {
    const text = end === at ? first.slice(2) : lines[end].trim();
    if (!text && end > at) return 0;
    const found = text.indexOf(closing);
    if (found >= 0) return found + 2 === text.length ? end + 1 : 0;
  }
  return 0;
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
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some((start) => start.test(line))
    || isTable(lines, at) || endOfFormula(lines, at) > 0;
}

/**
 * The cells of a table's line.
 * @param {string} line
 * @returns {string[]}
 */
export function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}
