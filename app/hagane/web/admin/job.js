/** One job, as it runs. */

import { ask } from "../shared/dialogs.js";
import { breakable, button, classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { editAlias } from "./alias.js";
import { LineChart } from "./chart.js";
import { followEvents, listAll, pathOf, request } from "./client.js";
import { canRepeat } from "./create.js";
import { makeFile } from "./exports.js";
import { factsOf } from "./job-facts.js";
import { badge, inCommon, progressBar } from "./jobs.js";
import { actions, chatLink, moment, number, sectionLink, showFacts, showList } from "./list.js";
import { announce, attempt, poll } from "./notice.js";

const $ = (id) => document.getElementById(id);
const JOBS = "v1/fine_tuning/jobs";
const PRETRAINING = "admin/pretraining/jobs";
const SECONDS = 2;
const SHOWN_EVENTS = 300;
const ACTIONS = {
  validating_files: ["cancelJob"],
  queued: ["pause", "cancelJob"],
  running: ["pause", "cancelJob"],
  paused: ["resume", "cancelJob"],
  failed: ["resume"],
};
const ROUTES = { pause: "pause", resume: "resume", cancelJob: "cancel" };

/**
 * @param {string} id
 * @returns {() => void}
 */
export function openJob(id) {
  const abort = new AbortController();
  // What preferences and rewards cost has no unit.
  let unit = "loss";
  const yName = () => t(unit);
  const chart = new LineChart($("chart-loss"), { xName: () => t("steps"), yName, table: true, whole: true });
  clear();
  const stop = poll(SECONDS, async () => {
    const job = inCommon(await request(pathOf(JOBS, id)));
    const checkpoints = await listAll(`${pathOf(JOBS, id)}/checkpoints`);
    show(job, checkpoints);
    if (job.method.type === "supervised" && unit === "loss") {
      unit = "lossUnit";
      chart.show(chart.series);
    }
    if (job.finished_at) stop();
  });
  attempt(() => follow(id, chart, abort.signal));
  return () => {
    stop();
    abort.abort();
  };
}

function clear() {
  for (const part of ["job-title", "job-head", "job-facts", "event-list"]) $(part).replaceChildren();
}

async function follow(id, chart, signal) {
  const series = [
    { name: t("training"), points: [], smooth: true },
    { name: t("validation"), points: [] },
  ];
  chart.show(series);
  for await (const event of followEvents(id, signal)) {
    if (signal.aborted) return;
    if (event.type === "metrics") {
      take(event.data, series);
      chart.show(series);
    } else {
      log(event);
    }
  }
}

/** Pretraining is judged by the bits that a byte of held-out text costs, on average of all texts. */
function take({ step, train_loss: train, loss = train, valid_loss: valid, bits_per_byte: bits }, series) {
  if (Number.isFinite(loss)) series[0].points.push([step, loss]);
  if (Number.isFinite(valid)) series[1].points.push([step, valid]);
  if (!bits) return;
  const costs = Object.values(bits);
  series[1].name = t("bitsPerByte");
  series[1].points.push([step, costs.reduce((sum, one) => sum + one, 0) / costs.length]);
}

function log(event) {
  const list = $("event-list");
  const follows = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  list.append(classed("p", event.level, moment(event.created_at), " ", event.message));
  while (list.childElementCount > SHOWN_EVENTS) list.firstChild.remove();
  if (follows) list.scrollTop = list.scrollHeight;
}

function show(job, checkpoints) {
  $("job-title").replaceChildren(...breakable(job.extra.adapter), " ", badge(job.status));
  showList($("job-head"), [job], ({ id }) => id, head);
  showFacts($("job-facts"), factsOf(job));
  const { id, extra: { result, full } } = job;
  const rows = checkpoints.map((one) => ({ ...one, job: { id, full: full ?? false, extra: { result } } }));
  showList($("checkpoint-list"), rows, (one) => one.id, checkpoint);
}

function head(job) {
  const made = element("div");
  const bar = progressBar(job);
  if (bar) made.append(bar);
  if (job.error) made.append(classed("p", "trouble", job.error.message));
  const words = ACTIONS[job.status] ?? [];
  // A job whose files were refused has nothing to go on from; memory may be another by now.
  const refused = job.status === "failed" && !job.extra.plan && job.error?.code !== "out_of_memory";
  const usable = refused ? [] : words;
  const buttons = usable.map((word) => button(word, () => change(job, word)));
  if (job.extra.result && !job.fine_tuned_model) buttons.push(button("promote", () => promote(job)));
  const links = canRepeat(job) ? [sectionLink("jobs", job.id, t("rerun"))] : [];
  const { fine_tuned_model: name } = job;
  if (name) links.push(sectionLink("compare", name, t("compareWithBase")), chatLink(name));
  made.append(classed("div", "actions", ...buttons, ...links));
  return made;
}

async function change(job, word) {
  if (word === "cancelJob" && (await ask(t("cancelLabel", { id: job.id }))) === null) return;
  await attempt(async () => {
    const changed = inCommon(await request(pathOf(JOBS, job.id, ROUTES[word]), { method: "POST" }));
    announce(t("changed"));
    showFacts($("job-facts"), factsOf(changed));
    showList($("job-head"), [changed], ({ id }) => id, head);
  });
}

/** Serve a result that the gate kept back. */
async function promote(job) {
  await attempt(async () => {
    const pretrained = job.object === "pretraining.job";
    const path = pretrained ? pathOf(PRETRAINING, job.id) : pathOf("admin/adapters", job.extra.adapter);
    await request(`${path}/promote`, { method: "POST" });
    announce(t("changed"));
    showList($("job-head"), [inCommon(await request(pathOf(JOBS, job.id)))], ({ id }) => id, head);
  });
}

/** The checkpoint that became the result is marked; an alias can lead to any. */
function checkpoint({ job, ...one }) {
  const { step_number: step, metrics, fine_tuned_model_checkpoint: name } = one;
  const losses = [
    metrics.train_loss === undefined ? "" : `${t("training")} ${number(metrics.train_loss)}`,
    metrics.valid_loss === undefined ? "" : `${t("validation")} ${number(metrics.valid_loss)}`,
  ];
  const text = [t("stepNumber", { step: number(step) }), ...losses].filter(Boolean).join(" · ");
  const about = element("span", text);
  if (job.extra.result?.step === step) about.append(" ", classed("span", "badge succeeded", t("chosen")));
  const tools = [
    button("makeFile", () => makeFile(name, job.full)),
    button("serveAs", () => editAlias(null, () => announce(t("changed")), name)),
    sectionLink("compare", name, t("compareIt")),
    chatLink(name),
  ];
  return classed("li", "card row", about, actions(tools, name));
}
