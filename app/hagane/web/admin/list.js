/** Lists that are asked for again and again, and what stands in them. */

import { breakable, classed, element, scrolling } from "../shared/dom.js";
import { t } from "../shared/i18n.js";

/** Characters that fit into one column of facts, about. */
const LONG = 18;
/** What each list shows: by key, the entry's JSON and its element. */
const shown = new WeakMap();

/**
 * Show `items`. What did not change stays in place, and so does the focus.
 * @param {HTMLElement} list
 * @param {object[]} items
 * @param {(item: object) => string} keyOf
 * @param {(item: object) => HTMLElement} build
 */
export function showList(list, items, keyOf, build) {
  const before = shown.get(list) ?? new Map();
  const now = new Map();
  for (const item of items) {
    const text = JSON.stringify([item, document.documentElement.lang]);
    const old = before.get(keyOf(item));
    const same = old?.text === text;
    now.set(keyOf(item), { text, made: same ? old.made : build(item), old: same ? null : old?.made });
  }
  const lost = [...list.children].findIndex((one) => one.contains(document.activeElement));
  const focused = [...now.values()].find(({ old }) => old?.contains(document.activeElement));
  const index = focused ? controls(focused.old).indexOf(document.activeElement) : -1;
  const rows = Array.from(now.values(), ({ made }) => made);
  if (!same(list.children, rows)) list.replaceChildren(...rows);
  if (!rows.length) list.replaceChildren(classed("li", "quiet", t("nothing")));
  controls(focused?.made)[index]?.focus();
  // What had the focus is gone: it goes to what stands there now.
  if (lost >= 0 && !list.contains(document.activeElement)) {
    controls(list.children[Math.min(lost, rows.length - 1)])[0]?.focus();
  }
  shown.set(list, now);
}

function same(children, rows) {
  return children.length === rows.length && rows.every((row, at) => row === children[at]);
}

function controls(parent) {
  return parent ? [...parent.querySelectorAll("a, button")] : [];
}

/**
 * Terms and what is known of each; unknown ones are left out.
 * @param {HTMLElement} list a `dl`
 * @param {[string, ?(string | number | Node)][]} facts
 */
export function showFacts(list, facts) {
  const known = facts.filter(([, value]) => value !== null && value !== undefined && value !== "");
  list.replaceChildren(...known.map(([term, value]) => {
    const said = typeof value === "number" ? number(value) : value;
    const made = element("div", element("dt", term), element("dd", ...(typeof said === "string" ? breakable(said) : [said])));
    // An id has a line of its own rather than two.
    made.classList.toggle("long", typeof said === "string" && said.length > LONG);
    return made;
  }));
}

/**
 * A table that scrolls where it has no room.
 * @param {string} label what screen readers call it
 * @param {string[]} heads
 * @param {(string | Node)[][]} rows
 * @returns {HTMLElement}
 */
export function grid(label, heads, rows) {
  const head = element("tr", ...heads.map((text) => element("th", text)));
  const body = rows.map((cells) => element("tr", ...cells.map((cell) => element("td", cell))));
  const table = element("table", element("thead", head), element("tbody", ...body));
  return scrolling(classed("div", "table", table), label);
}

/**
 * The buttons and links of one entry; each also says whose it is.
 * @param {HTMLElement[]} tools
 * @param {string} name
 * @returns {HTMLElement}
 */
export function actions(tools, name) {
  for (const tool of tools) tool.setAttribute("aria-label", `${tool.textContent}: ${name}`);
  return classed("div", "actions", ...tools);
}

/**
 * A number as the page's language writes it.
 * @param {number} value
 * @param {number} [digits] at most so many after the point
 * @returns {string}
 */
export function number(value, digits = 4) {
  return value.toLocaleString(document.documentElement.lang, { maximumFractionDigits: digits });
}

/**
 * A moment as the page's language writes it.
 * @param {number} seconds since 1970
 * @returns {HTMLTimeElement}
 */
export function moment(seconds) {
  const date = new Date(seconds * 1000);
  const style = { dateStyle: "medium", timeStyle: "short" };
  const made = element("time", date.toLocaleString(document.documentElement.lang, style));
  made.dateTime = date.toISOString();
  return made;
}

/**
 * A length of time, such as "3 min 20 s".
 * @param {number} seconds
 * @returns {string}
 */
export function duration(seconds) {
  const whole = Math.round(seconds);
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor((whole % 3600) / 60);
  if (hours) return t("hours", { hours, minutes });
  return minutes ? t("minutes", { minutes, seconds: whole % 60 }) : t("seconds", { seconds: whole });
}

/**
 * A number of bytes, such as "1.2 GB".
 * @param {number} bytes
 * @returns {string}
 */
export function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  while (bytes >= 1000 ** (power + 1) && power < 4) power += 1;
  return `${number(bytes / 1000 ** power, 1)} ${units[power]}`;
}

/**
 * A link to one of the sections.
 * @param {string} section
 * @param {string} argument
 * @param {string} text
 * @returns {HTMLAnchorElement}
 */
export function sectionLink(section, argument, text) {
  const link = element("a", text);
  link.href = `#/${section}/${encodeURIComponent(argument)}`;
  return link;
}

/**
 * A link that begins a conversation with `model`.
 * @param {string} model
 * @returns {HTMLAnchorElement}
 */
export function chatLink(model) {
  const link = element("a", t("chatWith"));
  link.href = `./#model=${encodeURIComponent(model)}`;
  link.setAttribute("aria-label", `${t("chatWith")}: ${model}`);
  return link;
}
