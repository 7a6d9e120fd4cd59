/**
 * The inline half of the Markdown renderer: emphasis, code, links, formulas, a few harmless tags.
 *
 * Text goes into the page by text nodes alone, so that nothing a model writes is ever parsed as
 * HTML. Every pattern is bounded and failed searches are remembered: time stays linear in the text.
 */

import { formula } from "./formula.js";
import { ENTITY, decode } from "./entities.js";

const DEEPEST = 6;
const LINK = /\[([^[\]\n]{1,500})\]\(([^()\s]{1,2000})(?:[ ]+"[^"\n]{0,200}")?\)/y;
const ADDRESS = /https?:\/\/[^\s<>"'`{}|\\^[\]()\u3000-\u303f\uff00-\uffef]{1,2000}/y;
const BREAK = /<br[ \t]{0,3}\/?>/iy;
/* The elements that models write for want of a mark. None has attributes, so none can act. */
const TAG = /<(sub|sup|kbd|mark|b|i|u|s|strong|em|del|ins|small)>/y;
const JAPANESE = /[\u3040-\u30ff\u4e00-\u9fff]/;
const LONGEST_FORMULA = 2000;
const ESCAPED = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}]/u;
/** Longest first: `**` is not two `*`. */
const MARKS = [
  ["***", "em"],
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "s"],
  ["*", "em"],
  ["_", "em"],
];

/**
 * The address if it is an absolute http or https one, else null.
 * @param {string} text
 * @returns {?string}
 */
export function safeAddress(text) {
  if (!/^https?:\/\//i.test(text)) return null;
  try {
    const address = new URL(text);
    return ["http:", "https:"].includes(address.protocol) ? address.href : null;
  } catch {
    return null;
  }
}

/**
 * Append `text`, read as inline Markdown, to `parent`.
 * @param {Node} parent
 * @param {string} text
 * @param {number} [depth] how many emphases surround the text
 */
export function appendInline(parent, text, depth = 0) {
  const scan = { text, at: 0, plain: "", hopeless: new Set(), parent, depth };
  while (scan.at < text.length) {
    if (!READERS.some((reads) => reads(scan))) {
      scan.plain += text[scan.at];
      scan.at += 1;
    }
  }
  flush(scan);
}

/** Each takes what begins at `scan.at`, or answers false. */
const READERS = [newline, maths, escaped, code, link, entity, tag, emphasis];

function flush(scan) {
  if (scan.plain) scan.parent.append(document.createTextNode(scan.plain));
  scan.plain = "";
}

function put(scan, element, end) {
  flush(scan);
  scan.parent.append(element);
  scan.at = end;
  return true;
}

/** Where `mark` comes next; a mark that is not found once is not looked for again. */
function find(scan, mark, from) {
  if (scan.hopeless.has(mark)) return -1;
  const end = scan.text.indexOf(mark, from);
  if (end < 0) scan.hopeless.add(mark);
  return end;
}

function newline(scan) {
  if (scan.text[scan.at] !== "\n") return false;
  return put(scan, document.createElement("br"), scan.at + 1);
}

function maths(scan) {
  const { text, at } = scan;
  if (text[at] !== "$" && text[at] !== "\\") return false;
  const mark = text.slice(at, at + 2);
  if (mark === "\\(") return formulaTo(scan, 2, "\\)", false);
  if (mark === "\\[") return formulaTo(scan, 2, "\\]", true);
  if (mark === "$$") return formulaTo(scan, 2, "$$", true);
  // A single dollar is money more often than not.
  if (text[at] !== "$" || WORD.test(text[at - 1] ?? " ")) return false;
  const end = find(scan, "$", at + 1);
  const inside = text.slice(at + 1, end);
  if (end < 0 || end - at > LONGEST_FORMULA || /^\s|\s$|\n/.test(inside)) return false;
  const money = /\d/.test(text[end + 1] ?? "") || (/^\d/.test(inside) && /^[^\\^_=]*\s/.test(inside));
  if (money || (JAPANESE.test(inside) && !inside.includes("\\"))) return false;
  return formulaTo(scan, 1, "$", false);
}

/** Take the formula that ends with `mark`, if it ends. */
function formulaTo(scan, width, mark, display) {
  const end = find(scan, mark, scan.at + width);
  const inside = scan.text.slice(scan.at + width, end);
  if (end < 0 || inside.length > LONGEST_FORMULA || !inside.trim()) return false;
  const source = scan.text.slice(scan.at, end + mark.length);
  return put(scan, formula(inside, source, display), end + mark.length);
}

function entity(scan) {
  if (scan.text[scan.at] !== "&") return false;
  ENTITY.lastIndex = scan.at;
  const match = ENTITY.exec(scan.text);
  const decoded = match && decode(match[1]);
  if (!decoded) return false;
  scan.plain += decoded;
  scan.at = ENTITY.lastIndex;
  return true;
}

function tag(scan) {
  if (scan.text[scan.at] !== "<") return false;
  BREAK.lastIndex = TAG.lastIndex = scan.at;
  if (BREAK.test(scan.text)) return put(scan, document.createElement("br"), BREAK.lastIndex);
  const name = scan.depth < DEEPEST ? TAG.exec(scan.text)?.[1] : null;
  const start = TAG.lastIndex;
  const end = name ? find(scan, `</${name}>`, start) : -1;
  if (end < 0) return false;
  const element = document.createElement(name);
  appendInline(element, scan.text.slice(start, end), scan.depth + 1);
  return put(scan, element, end + name.length + 3);
}

function escaped(scan) {
  const next = scan.text[scan.at + 1];
  if (scan.text[scan.at] !== "\\" || next === undefined || !ESCAPED.test(next)) return false;
  scan.plain += next;
  scan.at += 2;
  return true;
}

function code(scan) {
  if (scan.text[scan.at] !== "`") return false;
  let start = scan.at;
  while (scan.text[start] === "`") start += 1;
  const fence = scan.text.slice(scan.at, start);
  const end = find(scan, fence, start);
  if (end < 0) {
    scan.plain += fence;
    scan.at = start;
    return true;
  }
  const element = document.createElement("code");
  const inside = scan.text.slice(start, end).replaceAll("\n", " ");
  // One space each side lets code begin with a backtick.
  element.textContent = /^ .*\S.* $/.test(inside) ? inside.slice(1, -1) : inside;
  return put(scan, element, end + fence.length);
}

function link(scan) {
  const first = scan.text[scan.at];
  if (first === "[") return written(scan);
  if (first === "h" && !WORD.test(scan.text[scan.at - 1] ?? " ")) return bare(scan);
  return false;
}

function written(scan) {
  LINK.lastIndex = scan.at;
  const match = LINK.exec(scan.text);
  const address = match && safeAddress(match[2]);
  if (!address) return false;
  const element = anchor(address);
  appendInline(element, match[1], DEEPEST);
  return put(scan, element, LINK.lastIndex);
}

function bare(scan) {
  ADDRESS.lastIndex = scan.at;
  const match = ADDRESS.exec(scan.text);
  if (!match) return false;
  const shown = match[0].replace(/[.,:;!?*_~]+$/, "");
  const address = safeAddress(shown);
  if (!address) return false;
  const element = anchor(address);
  element.textContent = shown;
  return put(scan, element, scan.at + shown.length);
}

function anchor(address) {
  const element = document.createElement("a");
  element.href = address;
  element.target = "_blank";
  element.rel = "noopener noreferrer";
  return element;
}

/**
 * Stricter than CommonMark about nothing, laxer about one thing: punctuation next to a mark does
 * not matter, because `**「強調」**です` is emphasis to every writer of Japanese.
 */
function emphasis(scan) {
  if (scan.depth >= DEEPEST) return false;
  const { text, at } = scan;
  for (const [mark, tag] of MARKS) {
    if (!text.startsWith(mark, at)) continue;
    const start = at + mark.length;
    if (/^\s?$/.test(text[start] ?? "") || text[start] === mark[0]) continue;
    if (mark[0] === "_" && WORD.test(text[at - 1] ?? " ")) return false;
    const end = closing(scan, mark, start + 1);
    if (end < 0) continue;
    const element = document.createElement(tag);
    const inside = text.slice(start, end);
    appendInline(element, mark === "***" ? `**${inside}**` : inside, scan.depth + 1);
    return put(scan, element, end + mark.length);
  }
  return false;
}

function closing(scan, mark, from) {
  const { text } = scan;
  // Eight candidates are plenty for prose, and bound the work that hostile text can cause.
  for (let tries = 0, end = find(scan, mark, from); end >= 0 && tries < 8; tries += 1) {
    // The last two of `***` close the outer `**`; the first closes an inner `*`.
    if (mark.length === 2 && text[end + 2] === mark[0]) end += 1;
    const after = text[end + mark.length] ?? " ";
    const doubled = mark.length === 1 && (after === mark || text[end - 1] === mark);
    const inWord = mark[0] === "_" && WORD.test(after);
    if (!/\s/.test(text[end - 1]) && text[end - 1] !== "\\" && !doubled && !inWord) return end;
    end = find(scan, mark, doubled && after === mark ? end + 2 : end + 1);
  }
  return -1;
}
