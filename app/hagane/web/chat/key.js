/** The dialog that asks for an API key, and says what one is. */

import { prepareDialog } from "../shared/dialogs.js";
import { isKept, loadKey, saveKey } from "../shared/keys.js";

/**
 * Ask for the API key.
 * @param {boolean} refused whether the server has just refused the one that there is
 * @param {() => void} saved
 */
export function askForKey(refused, saved) {
  const dialog = document.getElementById("key-dialog");
  const form = prepareDialog(dialog, () => {
    saveKey("key", form.elements.key.value.trim(), form.elements.keep.checked);
    saved();
  });
  document.getElementById("key-refused").hidden = !refused;
  form.elements.key.value = loadKey("key");
  form.elements.keep.checked = isKept("key");
  if (!dialog.open) dialog.showModal();
  form.elements.key.select();
}
