/** What the server does at this moment, and did in the last minutes. */

import { classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { LineChart } from "./chart.js";
import { request } from "./client.js";
import { progressBar } from "./jobs.js";
import { number, sectionLink, showFacts, size } from "./list.js";
import { poll } from "./notice.js";

const $ = (id) => document.getElementById(id);
const SECONDS = 2;
const KEPT = 300;

/** Samples of this visit, oldest first; they outlive a look at another section. */
const samples = [];

/** @returns {() => void} */
export function openOverview() {
  const ago = () => t("secondsAgo");
  const charts = {
    requests: new LineChart($("chart-requests"), { xName: ago, yName: () => t("requestsUnit"), from: 0, to: 4 }),
    cache: new LineChart($("chart-cache"), { xName: ago, yName: () => t("cacheUnit"), from: 0, to: 100, unit: " %" }),
    rate: new LineChart($("chart-rate"), { xName: ago, yName: () => t("rateUnit"), from: 0, to: 10 }),
  };
  return poll(SECONDS, async () => {
    const status = await request("admin/status");
    samples.push({ at: Date.now() / 1000, status });
    samples.splice(0, samples.length - KEPT);
    show(status, charts);
  });
}

function show(status, charts) {
  const { memory, disk } = status;
  showFacts($("figures"), [
    [t("model"), status.model],
    [t("engine"), status.engine.state],
    [t("contextLength"), status.engine.context_length],
    [t("running"), status.requests.running],
    [t("waiting"), status.requests.waiting],
    [t("cache"), `${number(percent(status), 1)} %`],
    [t("throughput"), number(status.tokens_per_second, 1)],
    [t("memoryFree"), memory && t("of", { part: size(memory.available_bytes), whole: size(memory.total_bytes) })],
    [t("diskFree"), disk && t("of", { part: size(disk.free_bytes), whole: size(disk.total_bytes) })],
    [t("serverVersion"), status.version],
  ]);
  showJob(status.job);
  charts.requests.show([
    line("running", ({ requests }) => requests.running),
    line("waiting", ({ requests }) => requests.waiting),
  ]);
  charts.cache.show([line("cache", percent)]);
  charts.rate.show([line("throughput", (one) => one.tokens_per_second)]);
}

/** The job that runs, with a way to it. */
function showJob(job) {
  if (!job) return $("running-job").replaceChildren();
  const title = element("h3", `${t("runningJob")}: `, sectionLink("job", job.id, job.id));
  const bar = progressBar({ status: "running", extra: job });
  $("running-job").replaceChildren(classed("div", "card", title, ...(bar ? [bar] : [])));
}

function percent({ kv_cache: cache }) {
  return cache.usage_ratio * 100;
}

function line(word, value) {
  const now = samples.at(-1).at;
  return { name: t(word), points: samples.map(({ at, status }) => [at - now, value(status)]) };
}
