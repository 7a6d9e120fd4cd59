/** The button at the message field that says which tools a conversation may use. */

import { classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { place } from "../shared/menu.js";
import { toolChoices } from "./tools.js";

const $ = (id) => document.getElementById(id);

/**
 * Make the button open a switch for each tool; the browser closes them on Escape or a press elsewhere.
 * @param {(names: string[]) => void} changed gets the names of those that are on
 */
export function prepareToolMenu(changed) {
  const menu = $("tool-menu");
  menu.addEventListener("change", () => {
    const boxes = [...menu.querySelectorAll("input:checked")];
    changed(boxes.map(({ value }) => value));
  });
  menu.addEventListener("toggle", ({ newState }) => {
    const isOpen = newState === "open";
    $("use-tools").setAttribute("aria-expanded", String(isOpen));
    if (!isOpen) return;
    place(menu, $("use-tools").getBoundingClientRect());
    menu.querySelector("input").focus();
  });
}

/**
 * Show which tools there are, and which of them a conversation may use.
 * @param {string[]} names those that are on
 */
export function showToolMenu(names) {
  const choices = toolChoices(names);
  const count = choices.filter(({ on, missing }) => on && !missing).length;
  const opener = $("use-tools");
  opener.hidden = !choices.length;
  opener.title = t("toolsOn", { count });
  opener.setAttribute("aria-label", opener.title);
  $("tool-count").textContent = count || "";
  // While it is open its switches say what holds, and one of them has the focus.
  if (!$("tool-menu").matches(":popover-open")) $("tool-list").replaceChildren(...choices.map(row));
}

function row({ name, source, description, on }) {
  const box = element("input");
  box.type = "checkbox";
  box.value = name;
  box.checked = on;
  const label = element("span", source ? t("toolOf", { name, source }) : name, " ");
  label.append(classed("span", "quiet", description));
  return classed("label", "check", box, label);
}
