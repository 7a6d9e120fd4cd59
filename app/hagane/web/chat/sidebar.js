/** The list of conversations, a drawer on narrow screens. */

import { ask } from "../shared/dialogs.js";
import { button, download } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { exported } from "./exchange.js";
import * as store from "./store.js";

const $ = (id) => document.getElementById(id);

/**
 * Show every stored conversation; the current one carries its actions.
 * @param {import("./store.js").Conversation} current
 * @param {{select: (id: string) => void, changed: (id: string, changes: object) => void,
 *   removed: (id: string) => void}} actions
 */
export function showConversations(current, actions) {
  const rows = store.listConversations().map((entry) => row(entry, entry.id === current.id, actions));
  $("conversations").replaceChildren(...rows);
}

function row(conversation, isCurrent, actions) {
  const name = store.nameOf(conversation) || t("untitled");
  const choose = document.createElement("button");
  choose.type = "button";
  choose.className = "choose";
  choose.textContent = name;
  choose.addEventListener("click", () => actions.select(conversation.id));
  const made = document.createElement("li");
  made.append(choose);
  if (!isCurrent) return made;
  choose.setAttribute("aria-current", "true");
  const tools = document.createElement("div");
  tools.className = "tools";
  tools.append(
    button("rename", () => rename(conversation, name, actions)),
    button("exportJson", () => download(`${fileName(name)}.json`, exported(store.openConversation(conversation.id)))),
    button("remove", () => remove(conversation, name, actions)),
  );
  made.append(tools);
  return made;
}

/** Without what some file system refuses in a name. */
function fileName(name) {
  return name.replace(/[\p{Cc}\\/:*?"<>|]+/gu, "-");
}

async function rename(conversation, name, actions) {
  const title = await ask(t("renameLabel"), name);
  if (title === null) return;
  actions.changed(conversation.id, { title });
  document.querySelector("#conversations .rename")?.focus();
}

async function remove(conversation, name, actions) {
  if ((await ask(t("removeLabel", { name }))) === null) return;
  store.deleteConversation(conversation.id);
  actions.removed(conversation.id);
  $("new-chat").focus();
}

/** Make the drawer's button open it, and Escape or a tap outside close it. */
export function prepareDrawer() {
  $("show-list").addEventListener("click", () => setDrawer(true));
  document.addEventListener("click", (event) => {
    if (isOpen() && !event.target.closest("#sidebar, #show-list, dialog")) setDrawer(false);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !isOpen() || document.querySelector("dialog[open]")) return;
    setDrawer(false);
    $("show-list").focus();
  });
  // A window made wider has no drawer to close any more.
  matchMedia("(min-width: 45.01rem)").addEventListener("change", () => setDrawer(false));
}

function isOpen() {
  return document.body.classList.contains("drawer");
}

/**
 * Open or close the drawer. Wide screens show the list always and care for neither.
 * @param {boolean} open
 */
export function setDrawer(open) {
  document.body.classList.toggle("drawer", open);
  $("show-list").setAttribute("aria-expanded", String(open));
  $("page").inert = open;
  if (open) $("new-chat").focus();
}
