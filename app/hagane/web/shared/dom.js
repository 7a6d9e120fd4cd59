/** Making elements, the only way that anything gets into a page: text stays text. */

import { t } from "./i18n.js";

/**
 * An element with `children`; a string among them becomes text, never HTML.
 * @param {string} tag
 * @param {...(Node | string)} children
 * @returns {HTMLElement}
 */
export function element(tag, ...children) {
  const made = document.createElement(tag);
  made.append(...children);
  return made;
}

/**
 * An element with a class.
 * @param {string} tag
 * @param {string} className
 * @param {...(Node | string)} children
 * @returns {HTMLElement}
 */
export function classed(tag, className, ...children) {
  const made = element(tag, ...children);
  made.className = className;
  return made;
}

/**
 * A name that breaks over lines after its marks, and not within its words where it need not.
 * @param {string} name such as `ft:base:house:ftjob-1`
 * @returns {Node[]}
 */
export function breakable(name) {
  const parts = name.split(/(?<=[:/_-])/);
  return parts.flatMap((part) => [document.createElement("wbr"), document.createTextNode(part)]).slice(1);
}

/**
 * A button with a text.
 * @param {string} word key of the text
 * @param {(event: MouseEvent) => void} pressed
 * @returns {HTMLButtonElement}
 */
export function button(word, pressed) {
  const made = classed("button", word, t(word));
  made.type = "button";
  made.addEventListener("click", pressed);
  return made;
}

/**
 * Make `children` scroll sideways in a box that the keyboard can reach.
 * @param {HTMLElement} made the box
 * @param {string} label what screen readers call it
 * @returns {HTMLElement}
 */
export function scrolling(made, label) {
  made.tabIndex = 0;
  made.setAttribute("role", "group");
  made.setAttribute("aria-label", label);
  return made;
}

/**
 * Hand `text` to the browser as a file to keep.
 * @param {string} name
 * @param {string} text
 * @param {string} [type]
 */
export function download(name, text, type = "application/json") {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
