/** The dialog of settings. */

import { prepareDialog } from "../shared/dialogs.js";
import { preferences } from "../shared/storage.js";

const NUMBERS = ["temperature", "topP", "topK", "minP", "repetitionPenalty", "maxTokens", "seed"];

/**
 * Show the settings; `changed` gets the new preferences when they are saved.
 * @param {string} system the current conversation's system prompt
 * @param {(changes: object) => void} changed
 */
export function openSettings(system, changed) {
  const dialog = document.getElementById("settings");
  const form = prepareDialog(dialog, () => {
    const changes = { system: form.elements.system.value.trim() };
    for (const name of NUMBERS) {
      const { value } = form.elements[name];
      changes[name] = value === "" ? null : Number(value);
    }
    changed(changes);
  });
  form.elements.system.value = system;
  for (const name of NUMBERS) form.elements[name].value = preferences[name] ?? "";
  dialog.showModal();
  form.elements.system.focus();
}
