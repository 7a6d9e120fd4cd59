/** Adapters and trained models as files to take away: written by the server, then downloaded. */

import { prepareDialog } from "../shared/dialogs.js";
import { breakable, button, classed, download, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { pathOf, request, requestBlob } from "./client.js";
import { actions, moment, number, showList, size } from "./list.js";
import { announce, attempt } from "./notice.js";

const $ = (id) => document.getElementById(id);
/** What can be made, as `format type`, with its name and whether only an adapter has it. */
const FORMATS = [
  ["adapter", "formatAdapter", true],
  ["model", "formatModel", false],
  ["gguf Q8_0", "formatGguf8", false],
  ["gguf F16", "formatGguf16", false],
  ["gguf F32", "formatGguf32", false],
  ["gguf_adapter", "formatGgufAdapter", true],
];
const STATES = { queued: "queued", running: "runningNow", succeeded: "finishedFile", failed: "failed" };
const STAGES = { merging: "merging", packing: "packing", writing: "writing" };

/**
 * Ask for a format, and have the server make the file.
 * @param {string} model an adapter, a checkpoint or a trained model
 * @param {boolean} standalone whether it is a model of its own, which has no adapter
 */
export function makeFile(model, standalone) {
  const dialog = $("export-dialog");
  const form = prepareDialog(dialog, ({ elements }) => start(model, elements.format.value));
  const offered = FORMATS.filter(([, , adapters]) => !(adapters && standalone));
  form.elements.format.replaceChildren(...offered.map(([value, word]) => new Option(t(word), value)));
  $("export-model").replaceChildren(...breakable(model));
  dialog.showModal();
  form.elements.format.focus();
}

function start(model, chosen) {
  const [format, type] = chosen.split(" ");
  return attempt(async () => {
    await request("admin/exports", { json: { model, format, ...(type && { type }) } });
    announce(t("changed"));
    location.hash = "#/models";
    await refreshExports();
    $("exports-title").focus();
  });
}

/** Show the files that are made, being made or waiting. */
export async function refreshExports() {
  const { data } = await request("admin/exports");
  showList($("export-list"), data, ({ id }) => id, row);
}

function row(made) {
  const { filename, model, status, bytes, path, error, created_at: created } = made;
  const colour = status === "queued" ? "paused" : status;
  const about = element("p", ...breakable(model), ` · ${formatOf(made)} · `, moment(created));
  about.className = "quiet";
  if (bytes) about.append(` · ${size(bytes)}`);
  const card = classed("li", "card",
    element("h3", ...breakable(filename), " ", classed("span", `badge ${colour}`, t(STATES[status]))), about);
  if (status === "running") card.append(progressOf(made));
  if (error) card.append(classed("p", "trouble", error.message));
  if (path) card.append(element("p", element("code", ...breakable(path))));
  const tools = path ? [button("download", ({ target }) => fetchFile(made, target))] : [];
  const ended = ["succeeded", "failed"].includes(status);
  tools.push(button(ended ? "remove" : "stopExport", () => remove(made)));
  card.append(actions(tools, filename));
  return card;
}

function formatOf({ format, type }) {
  const found = FORMATS.find(([value]) => value === (type ? `${format} ${type}` : format));
  return found ? t(found[1]) : format;
}

function progressOf({ stage, progress }) {
  const bar = element("progress");
  const said = stage ? t(STAGES[stage]) : t("starting");
  if (progress !== null) bar.value = progress;
  bar.setAttribute("aria-label", said);
  const share = progress === null ? "" : ` · ${number(progress * 100, 0)} %`;
  return element("div", bar, classed("p", "quiet", said + share));
}

/** The page asks with its key; the browser keeps large files on the disk. */
async function fetchFile({ id, filename }, target) {
  const said = target.textContent;
  target.disabled = true;
  target.textContent = t("downloading");
  await attempt(async () =>
    download(filename, await requestBlob(pathOf("admin/exports", id, "content")), "application/octet-stream"));
  target.disabled = false;
  target.textContent = said;
}

function remove({ id }) {
  return attempt(async () => {
    await request(pathOf("admin/exports", id), { method: "DELETE" });
    announce(t("changed"));
    await refreshExports();
  });
}
