/** The dialog of settings. */

import { prepareDialog } from "../shared/dialogs.js";
import { t } from "../shared/i18n.js";
import { preferences } from "../shared/storage.js";

const NUMBERS = ["temperature", "topP", "topK", "minP", "repetitionPenalty", "maxTokens", "seed"];
/** Where a slider stands while the model's own value holds. */
const USUAL = { temperature: 1, topP: 1, minP: 0, repetitionPenalty: 1 };

/**
 * Show the settings; `changed` gets the new preferences when they are saved.
 * @param {string} system the current conversation's system prompt
 * @param {?{days: number}} offer how long the server keeps conversations; null where it keeps none
 * @param {(changes: object) => void} changed
 */
export function openSettings(system, offer, changed) {
  const dialog = document.getElementById("settings");
  const form = prepareDialog(dialog, () => {
    const changes = { system: form.elements.system.value.trim() };
    for (const name of NUMBERS) {
      const { value } = form.elements[name];
      changes[name] = value === "" ? null : Number(value);
    }
    if (offer) changes.onServer = form.elements.onServer.checked;
    changed(changes);
  });
  document.getElementById("keeping").hidden = !offer;
  form.elements.onServer.checked = preferences.onServer;
  if (offer) document.getElementById("keeping-hint").textContent = t("onServerHint", { days: offer.days });
  form.elements.system.value = system;
  for (const name of NUMBERS) form.elements[name].value = preferences[name] ?? "";
  for (const slider of form.querySelectorAll("[data-slides]")) follow(slider, form);
  for (const button of form.querySelectorAll("[data-presses]")) {
    button.onclick = () => document.getElementById(button.dataset.presses).click();
  }
  dialog.showModal();
  form.elements.system.focus();
}

/** A slider and its field show the same; an empty field is the model's own value. */
function follow(slider, form) {
  const name = slider.dataset.slides;
  const field = form.elements[name];
  const show = () => {
    slider.value = field.value || USUAL[name];
    slider.classList.toggle("untouched", field.value === "");
  };
  field.oninput = show;
  slider.oninput = () => {
    field.value = slider.value;
    show();
  };
  show();
}
