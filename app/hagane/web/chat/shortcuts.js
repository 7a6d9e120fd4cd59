/** What the keyboard does everywhere on the page. */

const $ = (id) => document.getElementById(id);

/**
 * Listen for the keys that the dialog of shortcuts names.
 * @param {{fresh: () => void, search: () => void, editLast: () => void}} actions
 */
export function prepareShortcuts(actions) {
  const dialog = $("shortcuts");
  dialog.querySelector(".cancel").addEventListener("click", () => dialog.close());
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]") || event.isComposing) return;
    const act = { ...actions, help: () => dialog.showModal() }[meaning(event)];
    if (!act) return;
    event.preventDefault();
    act();
  });
}

function meaning({ key, ctrlKey, metaKey, shiftKey, target }) {
  if (ctrlKey || metaKey) {
    if (shiftKey) return key.toLowerCase() === "o" ? "fresh" : "";
    return { k: "search", "/": "help" }[key] ?? "";
  }
  const emptyPrompt = target.id === "prompt" && !target.value;
  return key === "ArrowUp" && emptyPrompt ? "editLast" : "";
}
