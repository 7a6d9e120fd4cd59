/** The dialog of settings. */

import { prepareDialog } from "../shared/dialogs.js";
import { loadKey, preferences, saveKey } from "../shared/storage.js";

const NUMBERS = ["temperature", "topP", "topK", "minP", "repetitionPenalty", "maxTokens", "seed"];

/**
 * Show the settings; `changed` gets the new preferences when they are saved.
 * @param {string} system the current conversation's system prompt
 * @param {(changes: object) => void} changed
 * @param {string} [focus] name of the field to begin in
 */
export function openSettings(system, changed, focus = "system") {
  const dialog = document.getElementById("settings");
  const form = prepareDialog(dialog, () => {
    saveKey("key", form.elements.key.value.trim());
    const changes = { system: form.elements.system.value.trim() };
    for (const name of NUMBERS) {
      const { value } = form.elements[name];
      changes[name] = value === "" ? null : Number(value);
    }
    changed(changes);
  });
  form.elements.system.value = system;
  form.elements.key.value = loadKey("key");
  for (const name of NUMBERS) form.elements[name].value = preferences[name] ?? "";
  dialog.showModal();
  form.elements[focus].focus();
}
