/** The lists of jobs: fine-tuning and pretraining. */

import { breakable, classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { request } from "./client.js";
import { prepareCreation } from "./create.js";
import { methodOf } from "./job-facts.js";
import { chatLink, duration, moment, number, showList } from "./list.js";
import { poll } from "./notice.js";
import { preparePretraining } from "./pretrain.js";

const $ = (id) => document.getElementById(id);
const SECONDS = 3;
const STATUS = {
  validating_files: "validating",
  queued: "queued",
  running: "runningNow",
  paused: "paused",
  succeeded: "succeeded",
  failed: "failed",
  cancelled: "cancelled",
};

/**
 * @param {string} beginning id of the training file that a new job begins with, or of the job
 *   that is made again, or ""
 * @returns {() => void}
 */
export function openJobs(beginning) {
  prepareCreation(beginning);
  preparePretraining();
  return poll(SECONDS, async () => {
    const [tuning, pretraining] = await Promise.all(
      ["v1/fine_tuning/jobs", "admin/pretraining/jobs"].map((path) => request(`${path}?limit=100`)),
    );
    showList($("job-list"), tuning.data, ({ id }) => id, row);
    showList($("pretraining-list"), pretraining.data.map(inCommon), ({ id }) => id, row);
  });
}

/**
 * A job as one of fine-tuning: one of pretraining has a name, and a configuration of its own.
 * @param {object} job
 * @returns {object}
 */
export function inCommon(job) {
  if (job.object !== "pretraining.job") return job;
  const { name, config, progress, result } = job;
  return {
    ...job,
    model: name,
    fine_tuned_model: job.model,
    method: { type: t("pretraining") },
    hyperparameters: { batch_size: config.batch_rows },
    seed: config.seed,
    extra: { adapter: name, plan: { steps: config.steps }, progress, result },
  };
}

function row(job) {
  const link = element("a", ...breakable(job.extra.adapter));
  link.href = `#/job/${encodeURIComponent(job.id)}`;
  const about = element("p", `${job.model} · ${methodOf(job)} · `, moment(job.created_at));
  about.className = "quiet";
  const made = classed("li", "card", element("h3", link, " ", badge(job.status)), about);
  const bar = progressBar(job);
  if (bar) made.append(bar);
  if (job.error) made.append(classed("p", "trouble", job.error.message));
  if (job.fine_tuned_model) made.append(element("p", chatLink(job.fine_tuned_model)));
  return made;
}

/**
 * A job's status as a coloured word.
 * @param {string} status
 * @returns {HTMLElement}
 */
export function badge(status) {
  return classed("span", `badge ${status}`, status in STATUS ? t(STATUS[status]) : status);
}

/**
 * How far a job is, in steps, with its speed and what is left.
 * @param {object} job
 * @returns {?HTMLElement} null before the first step and after the last
 */
export function progressBar({ status, extra: { progress } }) {
  if (!progress || !["running", "paused"].includes(status)) return null;
  const bar = element("progress");
  bar.max = progress.steps;
  bar.value = progress.step;
  const said = [
    t("step", { step: number(progress.step), steps: number(progress.steps) }),
    `${number(progress.tokens_per_second, 0)} ${t("tokensPerSecond")}`,
  ];
  if (status === "running") said.push(t("remaining", { time: duration(progress.eta_seconds) }));
  bar.setAttribute("aria-label", said[0]);
  return element("div", bar, classed("p", "quiet", said.join(" · ")));
}
