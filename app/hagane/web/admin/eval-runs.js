/** One eval: models that answer it, their results against one of them, and the answers themselves. */

import { ask } from "../shared/dialogs.js";
import { breakable, button, classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { offerModels } from "./choices.js";
import { listAll, pathOf, request } from "./client.js";
import { addFields, numbers } from "./fields.js";
import { grid, moment, number, showFacts, showList } from "./list.js";
import { announce, attempt, poll } from "./notice.js";
import { textOf } from "./records.js";

const $ = (id) => document.getElementById(id);
const SECONDS = 2;
const SHOWN_ITEMS = 20;
const SHOWN_RUNS = 4;
const ENDED = new Set(["completed", "failed", "canceled"]);
const STATES = { queued: "queued", in_progress: "runningNow", completed: "succeeded", failed: "failed", canceled: "cancelled" };
const COLOURS = { in_progress: "running", completed: "succeeded", failed: "failed" };
const MODELS = ["first", "second", "third"];
const FIELDS = [
  ...MODELS.map((name) => [name, `${name}Model`, { "data-help": `${name}ModelHelp` }, []]),
  ["max_completion_tokens", "maxTokens", { type: "number", min: "1", step: "1", placeholder: "1024", "data-help": "maxTokensHelp" }],
];

/**
 * @param {string} id of the eval
 * @returns {() => void}
 */
export function openEval(id) {
  addFields($("run-models"), FIELDS);
  for (const part of ["eval-title", "eval-facts", "run-table", "run-answers"]) $(part).replaceChildren();
  const { elements } = $("run-form");
  const { baseline } = $("baseline-form").elements;
  baseline.replaceChildren();
  let before = "";
  const refresh = async () => {
    const [made, runs] = await Promise.all([request(pathOf("v1/evals", id)), listAll(pathOf("v1/evals", id, "runs"))]);
    $("eval-title").replaceChildren(...breakable(made.name));
    offerBaselines(baseline, runs);
    const now = JSON.stringify([runs, baseline.value, document.documentElement.lang]);
    if (now === before) return;
    before = now;
    showFacts($("eval-facts"), factsOf(made, runs));
    await showRuns(made, runs, baseline.value, refresh);
    await showAnswers(made, runs);
  };
  $("run-form").onsubmit = (event) => {
    event.preventDefault();
    attempt(async () => {
      await start(id, elements);
      await refresh();
    });
  };
  baseline.onchange = () => attempt(refresh);
  attempt(() => offerModels(MODELS.map((name) => elements[name]), ""));
  return poll(SECONDS, refresh);
}

function factsOf({ testing_criteria: criteria, created_at: created }, runs) {
  return [
    [t("grader"), criteria.map(({ name, type }) => `${name} (${type})`).join(", ")],
    [t("questions"), runs.find(({ result_counts: { total } }) => total)?.result_counts.total],
    [t("created"), moment(created)],
  ];
}

/** The oldest run that has ended is the baseline unless another is chosen. */
function offerBaselines(select, runs) {
  const ended = runs.filter(({ status }) => status === "completed");
  const before = select.value;
  select.replaceChildren(...ended.map((run) => new Option(`${run.model} (${run.name})`, run.id)));
  if (ended.some(({ id }) => id === before)) select.value = before;
}

/** Runs of the models, with the questions that the eval was made of or that its last run had. */
async function start(id, elements) {
  const made = await request(pathOf("v1/evals", id));
  const { data: [last] } = await request(`${pathOf("v1/evals", id, "runs")}?limit=1&order=desc`);
  const { file, prompt } = made.metadata;
  const asked = prompt
    ? { type: "template", template: [{ role: "user", content: prompt }] }
    : { type: "item_reference", item_reference: "item.input" };
  const common = file
    ? { type: "completions", source: { type: "file_id", id: file }, input_messages: asked }
    : { ...last?.data_source, type: "completions" };
  const sampling = { temperature: 0, seed: 0, ...numbers(elements, ["max_completion_tokens"]) };
  const models = new Set(MODELS.map((name) => elements[name].value).filter(Boolean));
  for (const model of models) {
    const json = { name: model.slice(-256), data_source: { ...common, model, sampling_params: sampling } };
    await request(pathOf("v1/evals", id, "runs"), { json });
  }
  announce(t("changed"));
}

async function showRuns({ id }, runs, baseline, changed) {
  const heads = ["model", "state", "passedItems", "failedItems", "erroredItems", "winRate", "meanDifference", "actions"];
  const rows = await Promise.all(runs.map(async (run) => {
    const { status, model, result_counts: counts, error } = run;
    const done = counts.passed + counts.failed + counts.errored;
    const compared = status === "completed" && baseline && run.id !== baseline
      ? await request(`${pathOf("v1/evals", id, "compare")}?${new URLSearchParams({ baseline, candidate: run.id })}`)
      : null;
    const state = classed("span", `badge ${COLOURS[status] ?? "paused"}`, t(STATES[status] ?? status));
    const far = status === "in_progress" ? ` ${number(done)}\u00a0/\u00a0${number(counts.total)}` : "";
    const tool = ENDED.has(status) ? button("remove", () => end(id, run, changed)) : button("stop", () => end(id, run, changed));
    tool.setAttribute("aria-label", `${tool.textContent}: ${model}`);
    return [
      element("span", ...breakable(model)),
      element("span", state, far, error ? ` ${error.message}` : ""),
      share(counts.passed, done), share(counts.failed, done), number(counts.errored),
      run.id === baseline ? t("baselineItself") : compared ? interval(compared.win_rate, (one) => `${number(one * 100, 1)}\u00a0%`) : "–",
      compared ? interval(compared.difference, (one) => number(one, 3)) : "–",
      tool,
    ];
  }));
  $("run-table").replaceChildren(rows.length
    ? grid(t("results"), heads.map((word) => t(word)), rows)
    : classed("p", "quiet", t("noRuns")));
}

function share(count, whole) {
  return whole ? `${number(count)} (${number((100 * count) / whole, 0)}\u00a0%)` : number(count);
}

function interval({ low, share: middle, high }, say) {
  return t("withInterval", { middle: say(middle), low: say(low), high: say(high) });
}

async function end(id, { id: run, status, model }, changed) {
  if (ENDED.has(status) && (await ask(t("removeLabel", { name: model }), null, "remove")) === null) return;
  await attempt(async () => {
    const path = pathOf("v1/evals", id, "runs", run);
    await request(ENDED.has(status) ? path : `${path}/cancel`, { method: ENDED.has(status) ? "DELETE" : "POST" });
    announce(t("changed"));
    await changed();
  });
}

/** What the last runs said to the first questions. */
async function showAnswers({ id }, runs) {
  const ended = runs.filter(({ status }) => status === "completed").slice(-SHOWN_RUNS);
  const lists = await Promise.all(ended.map(async (run) =>
    (await request(`${pathOf("v1/evals", id, "runs", run.id, "output_items")}?limit=100`)).data));
  const items = new Map();
  lists.forEach((list, at) => list.forEach((one) => {
    const { datasource_item_id: number_, datasource_item: item } = one;
    if (!items.has(number_)) items.set(number_, { number: number_, item, said: [] });
    items.get(number_).said.push({ model: ended[at].model, ...one });
  }));
  const shown = [...items.values()].sort((a, b) => a.number - b.number).slice(0, SHOWN_ITEMS);
  const box = $("run-answers");
  if (!shown.length) return box.replaceChildren(classed("p", "quiet", t("noData")));
  if (!box.firstElementChild?.matches("ul")) box.replaceChildren(classed("ul", "cards"));
  showList(box.firstElementChild, shown, ({ number: key }) => String(key), itemRow);
}

function itemRow({ number: at, item, said }) {
  const question = textOf(item.question ?? item.input ?? item);
  const columns = said.map(({ model, status, sample, results }) => {
    const scores = results.map(({ name, score }) => `${name} ${number(score, 2)}`).join(" · ");
    const badge = classed("span", `badge ${status === "pass" ? "succeeded" : "failed"}`, t(status === "pass" ? "passed" : "notPassed"));
    const text = sample.output_text ?? sample.error?.message ?? "";
    return classed("div", "record", element("p", ...breakable(model), " ", badge, " ", classed("span", "quiet", scores)), classed("div", "said", text));
  });
  const expected = item.answer ? [element("p", `${t("expectedAnswer")}:`), classed("div", "said", textOf(item.answer))] : [];
  return classed("li", "card", element("h4", t("questionNumber", { number: at + 1 })), classed("div", "said", question), ...expected,
    classed("div", "answers", ...columns));
}
