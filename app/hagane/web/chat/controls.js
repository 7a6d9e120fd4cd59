/** The controls around the log: message field, header, examples. */

import { prefer, preferences } from "../shared/storage.js";
import { fit, onEnter } from "./composer.js";

const $ = (id) => document.getElementById(id);

/**
 * Make them work.
 * @param {{send: () => void, stop: () => void, isBusy: () => boolean, fresh: () => void,
 *   settings: () => void, askKey: () => void, compared: () => void}} actions
 */
export function prepareControls(actions) {
  const prompt = $("prompt");
  onEnter(prompt, actions.send);
  prompt.addEventListener("input", () => fit(prompt));
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing) actions.stop();
  });
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (actions.isBusy()) actions.stop();
    else actions.send();
    prompt.focus();
  });
  $("new-chat").addEventListener("click", actions.fresh);
  $("open-settings").addEventListener("click", actions.settings);
  $("open-key").addEventListener("click", () => {
    $("settings").close();
    actions.askKey();
  });
  for (const example of $("examples").children) {
    example.addEventListener("click", () => write(example.textContent));
  }
  $("model").addEventListener("change", () => prefer({ model: $("model").value }));
  $("second").addEventListener("change", () => prefer({ second: $("second").value }));
  $("compare").addEventListener("click", () => {
    prefer({ second: preferences.second ? "" : $("second").value });
    showCompared();
  });
  showCompared();
}

/** Show the second choice of models while two are compared. */
function showCompared() {
  const on = preferences.second !== "";
  $("compare").setAttribute("aria-pressed", String(on));
  $("second").hidden = !on;
}

/**
 * Put `text` into the field, ready to be changed.
 * @param {string} text
 */
export function write(text) {
  $("prompt").value = text;
  fit($("prompt"));
  if (text) $("prompt").focus();
}
