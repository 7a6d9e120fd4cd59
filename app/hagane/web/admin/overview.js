/** What the server does at this moment, and did in the last minutes or in the last day. */

import { classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { LineChart } from "./chart.js";
import { request } from "./client.js";
import { progressBar } from "./jobs.js";
import { number, sectionLink, showFacts, size } from "./list.js";
import { attempt, poll } from "./notice.js";

const $ = (id) => document.getElementById(id);
const SECONDS = 2;
const HISTORY_SECONDS = 5;
/** What the engine's states are called. */
const STATES = {
  ready: "engineReady",
  starting: "loadingNow",
  restarting: "restarting",
  draining: "ending",
  stopped: "ending",
  failed: "failed",
};

/** Seconds to a unit of the horizontal axis, and its name. */
const AXES = { "15m": [60, "minutesAgo"], "24h": [3600, "hoursAgo"] };

/** @returns {() => void} */
export function openOverview() {
  const { period } = $("history-form").elements;
  const chart = (id, yName, options) => new LineChart($(id), {
    xName: () => t(AXES[period.value][1]), yName: () => t(yName), from: 0, ...options,
  });
  const charts = {
    rate: chart("chart-rate", "rateUnit", { to: 10 }),
    requests: chart("chart-requests", "requestsUnit", { to: 4 }),
    ended: chart("chart-ended", "requestsUnit", { to: 10 }),
    latency: chart("chart-latency", "secondsUnit", { to: 1, unit: " s" }),
    cache: chart("chart-cache", "cacheUnit", { to: 100, unit: " %" }),
    machine: chart("chart-machine", "shareUnit", { to: 100, unit: " %" }),
  };
  let totals = null;
  const update = async () => {
    const status = await request("admin/status");
    totals = { memory: status.memory?.total_bytes, disk: status.disk?.total_bytes };
    show(status);
  };
  const refresh = async () => {
    // How much there is in all is not in the history.
    if (!totals) await update();
    const wanted = period.value;
    const { data } = await request(`admin/history?period=${wanted}`);
    if (wanted === period.value) showHistory(data, wanted, charts, totals);
  };
  period.onchange = () => attempt(refresh);
  const stops = [poll(SECONDS, update), poll(HISTORY_SECONDS, refresh)];
  return () => stops.forEach((stop) => stop());
}

function show(status) {
  const { memory, disk } = status;
  showFacts($("figures"), [
    [t("model"), status.model],
    [t("engine"), t(STATES[status.engine.state])],
    [t("contextLength"), status.engine.context_length],
    [t("running"), status.requests.running],
    [t("waiting"), status.requests.waiting],
    [t("cache"), `${number(status.kv_cache.usage_ratio * 100, 1)} %`],
    [t("throughput"), number(status.tokens_per_second, 1)],
    [t("memoryFree"), memory && t("of", { part: size(memory.available_bytes), whole: size(memory.total_bytes) })],
    [t("diskFree"), disk && t("of", { part: size(disk.free_bytes), whole: size(disk.total_bytes) })],
    [t("serverVersion"), status.version],
  ]);
  showJob(status.job);
}

/** The job that runs, with a way to it. */
function showJob(job) {
  if (!job) return $("running-job").replaceChildren();
  const title = element("h3", `${t("runningJob")}: `, sectionLink("job", job.id, job.id));
  const bar = progressBar({ status: "running", extra: job });
  $("running-job").replaceChildren(classed("div", "card", title, ...(bar ? [bar] : [])));
}

function showHistory(samples, period, charts, totals) {
  const now = samples.at(-1)?.at ?? 0;
  const line = (word, value) => ({
    name: t(word),
    points: samples
      .map((sample) => [(sample.at - now) / AXES[period][0], value(sample)])
      .filter(([, found]) => found !== null),
  });
  const used = (free, total) => (free === null || !total ? null : 100 * (1 - free / total));
  charts.rate.show([
    line("generatedTokens", (one) => one.generated_tokens / one.seconds),
    line("promptTokens", (one) => one.prompt_tokens / one.seconds),
  ]);
  charts.requests.show([
    line("running", ({ running }) => running),
    line("waiting", ({ waiting }) => waiting),
  ]);
  charts.ended.show([line("endedPerMinute", (one) => (one.requests / one.seconds) * 60)]);
  charts.latency.show([
    line("firstToken", ({ first_token_seconds: seconds }) => seconds),
    line("inAll", ({ request_seconds: seconds }) => seconds),
  ]);
  charts.cache.show([line("cache", ({ cache_ratio: share }) => share * 100)]);
  charts.machine.show([
    line("machineMemory", (one) => used(one.available_bytes, totals.memory)),
    line("machineDisk", (one) => used(one.free_bytes, totals.disk)),
  ]);
}
