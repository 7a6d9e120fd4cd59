/** A small menu below the button that opens it. */

import { button, classed } from "./dom.js";

/**
 * Show buttons of which one can be pressed; the browser closes them on Escape or a press elsewhere.
 * @param {HTMLElement} opener the button that was pressed
 * @param {{[word: string]: () => void}} choices what each does, by the key of its text
 */
export function openMenu(opener, choices) {
  const made = Object.entries(choices).map(([word, act]) => button(word, () => {
    menu.hidePopover();
    act();
  }));
  const menu = classed("div", "menu", ...made);
  menu.id = "menu";
  menu.popover = "auto";
  menu.setAttribute("role", "group");
  menu.setAttribute("aria-label", opener.getAttribute("aria-label") ?? opener.textContent);
  menu.addEventListener("keydown", (event) => step(event, made));
  menu.addEventListener("toggle", ({ newState }) => {
    if (newState !== "closed") return;
    opener.setAttribute("aria-expanded", "false");
    menu.remove();
  });
  // Within the part of the page that it is of, as screen readers go from part to part.
  (opener.closest("#sidebar, header, main") ?? document.body).append(menu);
  menu.showPopover();
  opener.setAttribute("aria-expanded", "true");
  place(menu, opener.getBoundingClientRect());
  made[0].focus();
}

/**
 * Put a menu inside the window, below its opener where there is room, else above.
 * @param {HTMLElement} menu
 * @param {DOMRect} opener
 */
export function place(menu, { left, top, bottom }) {
  const { offsetWidth: width, offsetHeight: height } = menu;
  const below = bottom + height < innerHeight;
  menu.style.left = `${Math.max(8, Math.min(left, innerWidth - width - 8))}px`;
  menu.style.top = `${below ? bottom : Math.max(8, top - height)}px`;
}

function step(event, buttons) {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  const at = buttons.indexOf(document.activeElement);
  buttons.at((at + by) % buttons.length).focus();
}
