/** Dialogs and keys: the settings, a question, and the Enter that sends. */

import { t } from "./i18n.js";
import { loadKey, saveKey } from "./store.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "topP", "maxTokens", "seed"];

/**
 * Call `send` when Enter is pressed in `field`: not with Shift, and never to end a composition.
 * Safari ends the composition before the key arrives; only key code 229 tells it from a plain one.
 * @param {HTMLTextAreaElement} field
 * @param {() => void} send
 */
export function onEnter(field, send) {
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey) return;
    if (event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    send();
  });
}

/**
 * Make `field` as high as its text, up to the limit that the style sheet sets.
 * @param {HTMLTextAreaElement} field
 */
export function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

function prepare(dialog, accept) {
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
 * @returns {Promise<?string>} the field's text ("" without a field), null when cancelled
 */
export function ask(label, value = null) {
  const dialog = $("ask");
  const field = $("ask-value");
  prepare(dialog, () => {});
  $("ask-label").textContent = label;
  field.hidden = value === null;
  field.value = value ?? "";
  dialog.returnValue = "";
  dialog.showModal();
  field.select();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "accepted" ? field.value.trim() : null);
  });
}

/**
 * Show the settings; `changed` gets the new preferences when they are saved.
 * @param {import("./store.js").Preferences} preferences
 * @param {string} system the current conversation's system prompt
 * @param {(changes: object) => void} changed
 * @param {string} [focus] name of the field to begin in
 */
export function openSettings(preferences, system, changed, focus = "system") {
  const dialog = $("settings");
  const form = prepare(dialog, () => {
    saveKey(form.elements.key.value.trim());
    const changes = { system: form.elements.system.value.trim() };
    for (const name of NUMBERS) {
      const { value } = form.elements[name];
      changes[name] = value === "" ? null : Number(value);
    }
    changed(changes);
  });
  form.elements.system.value = system;
  form.elements.key.value = loadKey();
  for (const name of NUMBERS) form.elements[name].value = preferences[name] ?? "";
  dialog.showModal();
  form.elements[focus].focus();
}

/**
 * Hand `text` to the browser as a file to keep.
 * @param {string} name
 * @param {string} text
 */
export function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/**
 * A button with a text.
 * @param {string} word key of the text
 * @param {(event: MouseEvent) => void} pressed
 * @returns {HTMLButtonElement}
 */
export function button(word, pressed) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = word;
  made.textContent = t(word);
  made.addEventListener("click", pressed);
  return made;
}
