/** The clipboard, also where browsers do not lend it. */

import { t } from "./i18n.js";

/**
 * Put `text` on the clipboard and say so on `button` for a moment.
 * @param {string} text
 * @param {HTMLButtonElement} button
 */
export async function copyText(text, button) {
  const before = button.textContent;
  button.textContent = t((await copied(text)) ? "copied" : "copyFailed");
  setTimeout(() => (button.textContent = before), 1500);
}

/** The clipboard proper is for secure pages only; http on another host is not one. */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedByCommand(text);
  }
}

function copiedByCommand(text) {
  let done = false;
  const put = (event) => {
    event.clipboardData.setData("text/plain", text);
    event.preventDefault();
    done = true;
  };
  // Old, and the only way of such pages; it works while a click is being answered, and in some
  // browsers with something selected only.
  const focused = document.activeElement;
  const field = document.createElement("textarea");
  field.className = "unseen";
  field.value = " ";
  document.body.append(field);
  field.select();
  document.addEventListener("copy", put);
  document.execCommand("copy");
  document.removeEventListener("copy", put);
  field.remove();
  focused?.focus();
  return done;
}
