/** Files: uploading, what is wrong with each line, what training on them would cost. */

import { ask } from "../shared/dialogs.js";
import { button, classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { listAll, pathOf, request } from "./client.js";
import { offerBases } from "./create.js";
import { actions, duration, grid, moment, number, sectionLink, showFacts, showList, size } from "./list.js";
import { announce, attempt, poll } from "./notice.js";

const $ = (id) => document.getElementById(id);
const SECONDS = 10;

/** @returns {() => void} */
export function openFiles() {
  $("report").hidden = true;
  $("upload").onsubmit = (event) => {
    event.preventDefault();
    upload(event.target);
  };
  return poll(SECONDS, refresh);
}

async function refresh() {
  showList($("file-list"), await listAll("v1/files"), ({ id }) => id, row);
}

function row(file) {
  const about = element("p", `${file.id} · ${size(file.bytes)} · `, moment(file.created_at));
  about.className = "quiet";
  const use = sectionLink("jobs", file.id, t("tuneWith"));
  const tools = [button("check", () => check(file)), button("remove", () => remove(file)), use];
  return classed("li", "card", element("h3", file.filename), about, actions(tools, file.filename));
}

async function upload(form) {
  const [chosen] = form.elements.file.files;
  const body = new FormData();
  body.append("purpose", "fine-tune");
  body.append("file", chosen);
  const send = form.querySelector("button");
  send.disabled = true;
  send.textContent = t("uploading");
  await attempt(async () => {
    const file = await request("v1/files", { body });
    form.reset();
    announce(t("uploaded", { name: file.filename }));
    await refresh();
    await check(file);
  });
  send.disabled = false;
  send.textContent = t("upload");
}

async function remove(file) {
  if ((await ask(t("removeLabel", { name: file.filename }), null, "remove")) === null) return;
  await attempt(async () => {
    await request(pathOf("v1/files", file.id), { method: "DELETE" });
    await refresh();
  });
}

async function check(file) {
  const form = $("report-form");
  $("report-title").textContent = t("reportOf", { name: file.filename });
  $("report-body").replaceChildren();
  form.onchange = () => attempt(() => inspect(file, form));
  await attempt(async () => {
    await offerBases(form.elements.model);
    $("report").hidden = false;
    $("report").focus();
    await inspect(file, form);
  });
}

async function inspect(file, { elements }) {
  const asked = new URLSearchParams({ model: elements.model.value, method: elements.method.value });
  $("report-body").replaceChildren(classed("p", "quiet", t("checking")));
  showReport(await request(`${pathOf("v1/files", file.id)}/report?${asked}`));
}

function showReport({ training: report }) {
  const { total_problems: total, problems } = report;
  const verdict = total ? t("problems", { count: number(total) }) : t("noProblems");
  announce(verdict);
  const facts = element("dl");
  facts.className = "facts";
  showFacts(facts, [
    [t("examples"), report.examples],
    [t("tokens"), report.tokens],
    [t("trainedTokens"), report.trained_tokens],
    [t("truncated"), report.truncated],
    [t("duplicates"), report.duplicates],
    [t("steps"), report.steps || null],
    [t("estimatedTime"), report.seconds ? t("about", { value: duration(report.seconds) }) : null],
    [t("memory"), report.memory_bytes ? t("about", { value: size(report.memory_bytes) }) : null],
  ]);
  const parts = [classed("p", total ? "trouble" : "good", verdict), facts];
  if (total) parts.push(table(problems));
  if (total > problems.length) {
    parts.push(classed("p", "quiet", t("moreProblems", { count: number(total - problems.length) })));
  }
  $("report-body").replaceChildren(...parts);
}

function table(problems) {
  const rows = problems.map(([line, reason]) => [line ? String(line) : t("wholeFile"), reason]);
  return grid(t("badLines"), [t("line"), t("reason")], rows);
}
