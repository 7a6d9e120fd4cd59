/** Modal dialogs: a form of the page, or a question. */

import { t } from "./i18n.js";

const $ = (id) => document.getElementById(id);

/**
 * Make `dialog`'s form call `accept` and close when it is sent.
 * @param {HTMLDialogElement} dialog
 * @param {(form: HTMLFormElement) => void} accept
 * @returns {HTMLFormElement}
 */
export function prepareDialog(dialog, accept) {
  const form = dialog.querySelector("form");
  dialog.querySelector(".cancel").onclick = () => dialog.close();
  form.onsubmit = (event) => {
    event.preventDefault();
    accept(form);
    dialog.close("accepted");
  };
  return form;
}

/**
 * Ask for a word or for consent.
 * @param {string} label
 * @param {?string} value what the field begins with; null: no field, a question of yes or no
 * @param {"ok" | "remove"} [word] what the button says; what removes is red
 * @returns {Promise<?string>} the field's text ("" without a field), null when cancelled
 */
export function ask(label, value = null, word = "ok") {
  const dialog = $("ask");
  const field = $("ask-value");
  prepareDialog(dialog, () => {});
  $("ask-label").textContent = label;
  const accept = dialog.querySelector(".primary");
  accept.textContent = t(word);
  accept.classList.toggle("danger", word === "remove");
  field.hidden = value === null;
  field.value = value ?? "";
  dialog.returnValue = "";
  dialog.showModal();
  field.select();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "accepted" ? field.value.trim() : null);
  });
}
