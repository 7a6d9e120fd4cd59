/** What the server does at this moment, and did in the last minutes. */

import { t } from "../shared/i18n.js";
import { LineChart } from "./chart.js";
import { request } from "./client.js";
import { number, showFacts } from "./list.js";
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
  showFacts($("figures"), [
    [t("model"), status.model],
    [t("engine"), status.engine.state],
    [t("contextLength"), status.engine.context_length],
    [t("running"), status.requests.running],
    [t("waiting"), status.requests.waiting],
    [t("cache"), `${number(percent(status), 1)} %`],
    [t("throughput"), number(status.tokens_per_second, 1)],
  ]);
  charts.requests.show([
    line("running", ({ requests }) => requests.running),
    line("waiting", ({ requests }) => requests.waiting),
  ]);
  charts.cache.show([line("cache", percent)]);
  charts.rate.show([line("throughput", (one) => one.tokens_per_second)]);
}

function percent({ kv_cache: cache }) {
  return cache.usage_ratio * 100;
}

function line(word, value) {
  const now = samples.at(-1).at;
  return { name: t(word), points: samples.map(({ at, status }) => [at - now, value(status)]) };
}
