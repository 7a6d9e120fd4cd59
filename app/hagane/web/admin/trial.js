/** One alias: where it points, the candidate on trial, what both arms did, and what was decided. */

import { breakable, classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { editAlias } from "./alias.js";
import { pathOf, request } from "./client.js";
import { grid, moment, number, showFacts } from "./list.js";
import { listGenerations } from "./models.js";
import { poll } from "./notice.js";

const $ = (id) => document.getElementById(id);
const SECONDS = 3;
const STATES = {
  running: ["trialRunning", "running"],
  held: ["trialHeld", "paused"],
  promoted: ["trialPromoted", "succeeded"],
  rolled_back: ["trialWithdrawn", "failed"],
  superseded: ["trialSuperseded", "paused"],
};
const POLICY = {
  min_requests: "minRequests",
  max_error_rate: "maxErrorRate",
  max_latency_ratio: "maxLatencyRatio",
  min_win_rate: "minWinRate",
  confidence: "confidence",
  max_requests: "maxRequests",
  webhook: "webhook",
};

/**
 * @param {string} name of the alias
 * @returns {() => void}
 */
export function openTrial(name) {
  let before = "";
  for (const part of ["trial-title", "trial-facts", "trial-body"]) $(part).replaceChildren();
  const refresh = async () => {
    const alias = await request(pathOf("admin/aliases", name));
    const now = JSON.stringify(alias);
    if (now === before) return;
    before = now;
    $("trial-change").onclick = () => editAlias(alias, refresh);
    show(alias);
  };
  return poll(SECONDS, refresh);
}

function show(alias) {
  const { name, target, candidate, percentage, generation, canary } = alias;
  $("trial-title").replaceChildren(...breakable(name));
  showFacts($("trial-facts"), [
    [t("target"), target],
    [t("candidate"), candidate ?? t("noCandidate")],
    [t("percentage"), candidate ? number(percentage, 2) : null],
    [t("generationNow"), generation],
    [t("created"), moment(alias.created_at)],
  ]);
  const parts = canary ? showTrial(canary) : [classed("p", "quiet", t("noTrial"))];
  $("trial-body").replaceChildren(...parts, element("h3", t("history")), listGenerations(alias.history));
}

function showTrial(canary) {
  const [word, colour] = STATES[canary.state] ?? [canary.state, ""];
  const events = canary.events.map((event) =>
    element("li", classed("span", event.level === "warn" ? "trouble" : "", event.message), " · ", moment(event.created_at)));
  const policy = classed("dl", "facts");
  showFacts(policy, Object.entries(POLICY).map(([key, text]) => [t(text), canary.policy[key]]));
  return [
    element("h3", `${t("candidate")} `, classed("span", `badge ${colour}`, t(word))),
    element("p", canary.reason || t("noRequests")),
    arms(canary),
    judgements(canary.counts),
    element("h3", t("policy")), policy,
    element("h3", t("events")), classed("ol", "generations", ...events),
  ];
}

function arms({ target, candidate, counts }) {
  const heads = ["arm", "model", "requests", "failedRequests", "meanSeconds", "tokensPerSecond"].map((word) => t(word));
  const rows = [["target", target], ["candidate", candidate]].map(([arm, model]) => {
    const { requests = 0, errors = 0, seconds = 0, tokens = 0 } = counts[arm] ?? {};
    const good = requests - errors;
    return [
      t(arm), model, number(requests), number(errors),
      good ? number(seconds / good, 2) : "–",
      seconds ? number(tokens / seconds, 1) : "–",
    ];
  });
  return grid(t("arms"), heads, rows);
}

function judgements({ wins = 0, losses = 0 }) {
  return element("p", t("judgements", { wins: number(wins), losses: number(losses) }));
}
