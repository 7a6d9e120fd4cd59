/** Adapters, and the aliases that point to them. */

import { ask } from "../shared/dialogs.js";
import { breakable, button, classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { editAlias } from "./alias.js";
import { pathOf, request } from "./client.js";
import { makeFile, refreshExports } from "./exports.js";
import { actions, chatLink, moment, number, sectionLink, showList } from "./list.js";
import { announce, attempt, notice, poll } from "./notice.js";

const $ = (id) => document.getElementById(id);
const SECONDS = 3;

/** @returns {() => void} */
export function openModels() {
  $("load-form").onsubmit = (event) => {
    event.preventDefault();
    load(event.target);
  };
  $("new-alias").onclick = () => editAlias(null, refresh);
  return poll(SECONDS, refresh);
}

async function refresh() {
  const [adapters, aliases] = await Promise.all(["admin/adapters", "admin/aliases"].map(async (path) =>
    (await request(path)).data));
  showList($("adapter-list"), adapters, ({ name }) => name, adapterRow);
  showList($("alias-list"), aliases, ({ name }) => name, aliasRow);
  await refreshExports();
}

/** Do what a row's button says, then show what came of it. */
function act(path, options) {
  return attempt(async () => {
    await request(path, options);
    announce(t("changed"));
    await refresh();
  });
}

function adapterRow(adapter) {
  const { name, base_model: base, promoted, job, created_at: created } = adapter;
  const about = element("p", `${base} · `, moment(created));
  about.className = "quiet";
  const made = classed("li", "card", element("h3", ...breakable(name), " ", state(promoted)), about);
  if (job) about.append(" · ", sectionLink("job", job, job));
  const tools = promoted ? [] : [button("promote", () => promote(name))];
  // The server owns the files of models that jobs made; loaded adapters stay where they are.
  tools.push(job ? button("remove", () => remove(name)) : button("unload", () => unload(name)));
  tools.push(button("makeFile", () => makeFile(name, adapter.object !== "adapter")));
  if (promoted) tools.push(chatLink(name), sectionLink("compare", name, t("compareWithBase")));
  made.append(element("p", element("code", ...breakable(adapter.directory))), actions(tools, name));
  return made;
}

function state(promoted) {
  return classed("span", promoted ? "badge succeeded" : "badge paused", t(promoted ? "served" : "kept"));
}

function promote(name) {
  return act(pathOf("admin/adapters", name, "promote"), { method: "POST" });
}

async function unload(name) {
  if ((await ask(t("unloadLabel", { name }))) === null) return;
  await act("v1/unload_lora_adapter", { json: { lora_name: name } });
}

async function remove(name) {
  if ((await ask(t("removeLabel", { name }), null, "remove")) === null) return;
  await act(pathOf("v1/models", name), { method: "DELETE" });
}

async function load(form) {
  const json = {};
  for (const field of ["lora_name", "lora_path"]) json[field] = form.elements[field].value.trim();
  if (await act("v1/load_lora_adapter", { json })) form.reset();
}

function aliasRow(alias) {
  const { name, target, candidate, percentage, generation } = alias;
  const trial = candidate
    ? t("onTrial", { candidate, percentage: number(percentage, 2) })
    : "";
  const tools = [
    button("change", () => editAlias(alias, refresh)),
    button("rollback", () => rollBack(alias)),
    button("history", () => history(alias, made)),
    button("remove", () => removeAlias(name)),
    sectionLink("trial", name, t("details")),
    chatLink(name),
  ];
  const made = classed("li", "card",
    element("h3", ...breakable(name)),
    element("p", t("pointsTo", { target }), trial ? ` ${trial}` : ""),
    classed("p", "quiet", t("generation", { number: generation })),
    actions(tools, name));
  return made;
}

async function rollBack({ name, generation }) {
  let before;
  await attempt(async () => ([, before] = (await request(pathOf("admin/aliases", name))).history));
  if (!before?.target) return notice(t("noHistory"));
  if ((await ask(t("rollbackLabel", { name, target: before.target }))) === null) return;
  await act(pathOf("admin/aliases", name, "rollback"), { json: { expected_generation: generation } });
}

async function history({ name }, card) {
  const shown = card.querySelector("ol");
  if (shown) return shown.remove();
  await attempt(async () => {
    const { history: generations } = await request(pathOf("admin/aliases", name));
    card.append(listGenerations(generations));
  });
}

/**
 * What an alias pointed to, newest first.
 * @param {object[]} generations
 * @returns {HTMLElement}
 */
export function listGenerations(generations) {
  return classed("ol", "generations", ...generations.map((one) => {
    const trial = one.candidate
      ? ` ${t("onTrial", { candidate: one.candidate, percentage: number(one.percentage, 2) })}`
      : "";
    const said = `${t("generation", { number: one.generation })} · ${one.target ?? t("deleted")}${trial} · `;
    return element("li", said, moment(one.created_at));
  }));
}

async function removeAlias(name) {
  if ((await ask(t("removeLabel", { name }), null, "remove")) === null) return;
  await act(pathOf("admin/aliases", name), { method: "DELETE" });
}
