/** The list of conversations by date, a drawer on narrow screens. */

import { ask } from "../shared/dialogs.js";
import { classed, download, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { openMenu } from "../shared/menu.js";
import { asMarkdown, backup, exported, imported } from "./exchange.js";
import * as store from "./store.js";

const $ = (id) => document.getElementById(id);

/** Until how many days ago each heading reaches. */
const AGES = [[0, "today"], [1, "yesterday"], [7, "week"], [30, "month"], [Infinity, "older"]];
const DAY = 86_400_000;

/**
 * @typedef {{select: (id: ?string) => void, changed: (id: string, changes: object) => void,
 *   removed: (id: string) => void, read: (conversations: object[]) => void,
 *   refused: (text: string) => void}} Actions
 */

/**
 * Show every stored conversation, or those that contain what is searched for.
 * @param {string} current id of the one that is open
 * @param {Actions} actions
 */
export function showConversations(current, actions) {
  const wanted = $("search").value.trim();
  const found = wanted && store.search(wanted);
  const entries = store.listConversations().filter(({ id }) => !wanted || found.has(id));
  const groups = Map.groupBy(entries, ({ updated }) => ageOf(updated));
  const parts = Array.from(groups, ([age, members]) => {
    const rows = members.map((entry) => row(entry, entry.id === current, actions));
    return element("section", element("h2", t(age)), element("ul", ...rows));
  });
  if (wanted && !parts.length) parts.push(classed("p", "quiet", t("nothingFound")));
  $("conversations").replaceChildren(...parts);
}

function ageOf(updated) {
  const days = Math.round((new Date().setHours(0, 0, 0, 0) - new Date(updated).setHours(0, 0, 0, 0)) / DAY);
  return AGES.find(([most]) => days <= most)[1];
}

function row(entry, isCurrent, actions) {
  const name = store.nameOf(entry) || t("untitled");
  const choose = classed("button", "choose", name);
  choose.type = "button";
  choose.title = new Date(entry.updated).toLocaleString(document.documentElement.lang);
  choose.addEventListener("click", () => actions.select(entry.id));
  if (isCurrent) choose.setAttribute("aria-current", "true");
  const more = classed("button", "more", "…");
  more.type = "button";
  more.setAttribute("aria-label", t("moreOf", { name }));
  more.setAttribute("aria-expanded", "false");
  const open = () => store.openConversation(entry.id);
  more.addEventListener("click", () => openMenu(more, {
    rename: () => rename(entry, name, actions),
    exportMarkdown: () => download(`${fileName(name)}.md`, asMarkdown(open()), "text/markdown"),
    exportJson: () => download(`${fileName(name)}.json`, exported(open())),
    remove: () => remove(entry, name, actions),
  }));
  return element("li", choose, more);
}

/** Without what some file system refuses in a name, and without the end of a sentence. */
function fileName(name) {
  return name.replace(/[\p{Cc}\\/:*?"<>|]+/gu, "-").replace(/[.。\s]+$/, "") || t("untitled");
}

async function rename({ id }, name, actions) {
  const title = await ask(t("renameLabel"), name);
  if (title === null) return;
  actions.changed(id, { title });
}

async function remove({ id }, name, actions) {
  if ((await ask(t("removeLabel", { name }), null, "remove")) === null) return;
  store.deleteConversation(id);
  actions.removed(id);
  $("new-chat").focus();
}

/**
 * Make the search, and the menu of the whole list, work.
 * @param {Actions} actions
 * @param {() => void} searched
 */
export function prepareList(actions, searched) {
  $("search").addEventListener("input", searched);
  $("list-menu").addEventListener("click", () => openMenu($("list-menu"), {
    importFile: () => $("import").click(),
    exportAll: () => download("hagane-conversations.json", backup()),
    showShortcuts: () => $("shortcuts").showModal(),
  }));
  $("import").addEventListener("change", async () => {
    try {
      for (const file of $("import").files) actions.read(imported(await file.text()));
    } catch (error) {
      if (!(error instanceof SyntaxError || error instanceof TypeError)) throw error;
      actions.refused(t("importFailed"));
    }
    $("import").value = "";
  });
}

/** Make the drawer's button open it, and Escape or a tap outside close it. */
export function prepareDrawer() {
  $("show-list").addEventListener("click", () => setDrawer(true));
  document.addEventListener("click", (event) => {
    if (isOpen() && !event.target.closest("#sidebar, #show-list, #menu, dialog")) setDrawer(false);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !isOpen() || document.querySelector("dialog[open], #menu")) return;
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
 * Open or close the drawer. Wide screens show the list always and have none.
 * @param {boolean} wanted
 */
export function setDrawer(wanted) {
  const open = wanted && matchMedia("(max-width: 45rem)").matches;
  $("sidebar").setAttribute("role", open ? "dialog" : "complementary");
  if (open) $("sidebar").setAttribute("aria-modal", "true");
  else $("sidebar").removeAttribute("aria-modal");
  document.body.classList.toggle("drawer", open);
  $("show-list").setAttribute("aria-expanded", String(open));
  $("page").inert = open;
  if (open) $("new-chat").focus();
}
