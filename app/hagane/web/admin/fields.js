/** Form fields made from a description, and a line of help below a field. */

import { classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";

let helps = 0;

/**
 * Add labelled fields to a form's box.
 * @param {HTMLElement} box filled once: a second call changes nothing
 * @param {[string, string, Record<string, any>?, string[]?][]} fields name, key of the label's
 *   text, attributes (`wide`: of twice the width), and for a choice the keys of its options' texts,
 *   which are their values
 */
export function addFields(box, fields) {
  if (box.childElementCount) return;
  box.append(...fields.map(([name, word, { wide, ...attributes } = {}, options = null]) => {
    const control = element(options ? "select" : "input", ...(options ?? []).map(choice));
    control.name = name;
    if (!options) control.autocomplete = "off";
    for (const [key, value] of Object.entries(attributes)) control.setAttribute(key, value);
    if (control.dataset.i18nPlaceholder) control.placeholder = t(control.dataset.i18nPlaceholder);
    return classed("label", wide ? "wide" : "", spoken("span", word), control);
  }));
  prepareHelp(box);
}

function choice(word) {
  const made = spoken("option", word);
  made.value = word;
  return made;
}

/** An element whose text follows the page's language. */
function spoken(tag, word) {
  const made = element(tag, t(word));
  made.dataset.i18n = word;
  return made;
}

/**
 * Put the help named by `data-help` below each field of `root`, tied to it for screen readers.
 * @param {ParentNode} root
 */
export function prepareHelp(root) {
  for (const control of root.querySelectorAll("[data-help]")) {
    const label = control.closest("label");
    // Outside the label: the help is the field's description, not a part of its name.
    const box = classed("div", label.className);
    if (label.id) {
      // A form shows and hides the field by it.
      [box.id, box.hidden] = [label.id, label.hidden];
      label.removeAttribute("id");
      label.hidden = false;
    }
    label.className = "";
    const help = spoken("p", control.dataset.help);
    help.className = "quiet";
    help.id = `help-${(helps += 1)}`;
    control.setAttribute("aria-describedby", help.id);
    delete control.dataset.help;
    label.replaceWith(box);
    box.append(label, help);
  }
}

/**
 * The numbers that were filled in, by field.
 * @param {HTMLFormControlsCollection} elements
 * @param {string[]} names
 * @returns {Record<string, number>} what was left empty is left out
 */
export function numbers(elements, names) {
  return Object.fromEntries(names
    .filter((name) => elements[name].value !== "")
    .map((name) => [name, Number(elements[name].value)]));
}

/**
 * The Unix seconds at which a day begins here.
 * @param {string} day as a field of type `date` has it
 * @param {number} [later] days after it
 * @returns {?number} null for an empty field
 */
export function beginning(day, later = 0) {
  if (!day) return null;
  const date = new Date(`${day}T00:00:00`);
  date.setDate(date.getDate() + later);
  return Math.floor(date / 1000);
}
