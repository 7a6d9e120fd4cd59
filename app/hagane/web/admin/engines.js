/** The models with an engine of their own: in memory, being loaded, on disk, and what each costs. */

import { ask } from "../shared/dialogs.js";
import { breakable, button, classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { pathOf, request } from "./client.js";
import { actions, chatLink, duration, number, showFacts, showList, size } from "./list.js";
import { announce, attempt, poll } from "./notice.js";
import { preparePulls, refreshPulls } from "./pulls.js";

const $ = (id) => document.getElementById(id);
const SECONDS = 2;
const STATES = {
  ready: ["inMemory", "succeeded"],
  starting: ["loadingNow", "running"],
  restarting: ["restarting", "running"],
  draining: ["ending", "paused"],
  stopped: ["ending", "paused"],
  failed: ["failed", "failed"],
  on_disk: ["onDisk", "paused"],
};

/** @returns {() => void} */
export function openEngines() {
  preparePulls();
  return poll(SECONDS, refresh);
}

async function refresh() {
  const { data } = await request("admin/models");
  const bytes = (models) => models.reduce((sum, { weight_bytes: more }) => sum + more, 0);
  const resident = data.filter(({ state }) => state !== "on_disk");
  showFacts($("engine-facts"), [
    [t("modelsInMemory"), resident.length],
    [t("weightsInMemory"), size(bytes(resident))],
    [t("modelsInAll"), data.length],
    [t("weightsInAll"), size(bytes(data))],
  ]);
  // Seconds of idleness would make every row a new one each time.
  const calm = data.map((one) => ({ ...one, idle_seconds: one.idle_seconds && Math.floor(one.idle_seconds / 60) * 60 }));
  showList($("engine-list"), calm, ({ path }) => path, row);
  await refreshPulls();
}

function row(model) {
  const { id, state, path, weight_bytes: bytes, requests, idle_seconds: idle } = model;
  const [word, colour] = STATES[state] ?? [state, "paused"];
  const badges = [classed("span", `badge ${colour}`, t(word))];
  if (model.default) badges.push(" ", classed("span", "badge", t("defaultModel")));
  else if (model.pinned) badges.push(" ", classed("span", "badge", t("pinned")));
  const made = classed("li", "card",
    element("h3", ...breakable(id), " ", ...badges),
    classed("p", "quiet", `${size(bytes)} · `, ...breakable(path)));
  if (state !== "on_disk") made.append(element("p", load(requests, idle, model.pid)));
  const tools = model.default ? [] : toolsOf(model);
  made.append(actions([...tools, chatLink(id)], id));
  return made;
}

function load({ running, waiting }, idle, pid) {
  const said = [`${t("running")}: ${number(running)}`, `${t("waiting")}: ${number(waiting)}`];
  if (idle) said.push(t("idleFor", { time: duration(idle) }));
  if (pid) said.push(t("process", { pid }));
  return said.join(" · ");
}

function toolsOf({ id, state, pinned }) {
  if (state === "on_disk") {
    return [
      button("load", (event) => bring(id, false, event)),
      button("loadPinned", (event) => bring(id, true, event)),
      button("remove", () => remove(id)),
    ];
  }
  const pin = button(pinned ? "unpin" : "pin", (event) => bring(id, !pinned, event));
  return state === "ready" ? [pin, button("unload", () => release(id))] : [];
}

/** The server answers when the model takes requests; the list shows it being loaded meanwhile. */
async function bring(model, pinned, { target }) {
  target.disabled = true;
  await attempt(async () => {
    await request("admin/models/load", { json: { model, pinned } });
    announce(t("changed"));
    await refresh();
  });
  target.disabled = false;
}

async function release(model) {
  if ((await ask(t("releaseLabel", { name: model }))) === null) return;
  await attempt(async () => {
    await request("admin/models/unload", { json: { model } });
    announce(t("changed"));
    await refresh();
  });
}

/** Its files in the server's store; the server refuses others, and says why. */
async function remove(model) {
  if ((await ask(t("removeLabel", { name: model }), null, "remove")) === null) return;
  await attempt(async () => {
    const { freed_bytes: freed } = await request(pathOf("admin/models", model), { method: "DELETE" });
    announce(t("freed", { size: size(freed) }));
    await refresh();
  });
}
