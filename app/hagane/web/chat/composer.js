/** The fields that messages are written in: the Enter that sends, the height that follows. */

/** @returns {boolean} whether a finger is what the page is mostly used with */
export function touches() {
  return matchMedia("(pointer: coarse)").matches;
}

/**
 * Call `send` when Enter is pressed in `field`: not with Shift, never to end a composition, and on
 * phones, whose keyboards have no Shift+Enter, not without Ctrl. Safari ends the composition before
 * the key arrives; only key code 229 tells it from a plain one.
 * @param {HTMLTextAreaElement} field
 * @param {() => void} send
 */
export function onEnter(field, send) {
  field.enterKeyHint = touches() ? "enter" : "send";
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey) return;
    if (event.isComposing || event.keyCode === 229) return;
    if (touches() && !event.ctrlKey && !event.metaKey) return;
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
