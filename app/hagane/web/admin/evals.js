/** Evals: questions with a way to grade the answers, made of a file. */

import { ask } from "../shared/dialogs.js";
import { button, classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { listAll, pathOf, request, requestText } from "./client.js";
import { addFields, numbers } from "./fields.js";
import { actions, moment, sectionLink, showList } from "./list.js";
import { announce, attempt, poll } from "./notice.js";
import { textOf } from "./records.js";
import { submit } from "./submit.js";

const $ = (id) => document.getElementById(id);
const SECONDS = 5;
/** Longest prompt that a value of metadata has room for. */
const LONGEST = "512";
const SHARE = { type: "number", min: "0", max: "1", step: "any" };
const FIELDS = [
  ["name", "name", { required: "", maxlength: "256", "data-help": "evalNameHelp" }],
  ["file", "questions", { wide: true, required: "", "data-help": "questionsHelp" }, []],
  ["grader", "grader", { wide: true, "data-help": "graderHelp" }, ["graderSimilar", "graderEqual", "graderContains", "graderModel"]],
  ["pass_threshold", "passFrom", { ...SHARE, placeholder: "0.5", "data-help": "passFromHelp" }],
  ["judge", "judge", { "data-help": "judgeHelp" }, []],
  ["prompt", "promptOfItem", { wide: true, maxlength: LONGEST, "data-help": "promptOfItemHelp" }],
  ["reference", "expectedAnswer", { wide: true, maxlength: LONGEST, placeholder: "{{item.answer}}", "data-help": "expectedAnswerHelp" }],
];
const JUDGED = "Question: {question}\n\nExpected answer: {reference}\n\nAnswer: {answer}\n\n"
  + "How well does the answer agree with the expected one, from 0 to 1? Reply with the number alone.";

/** @returns {() => void} */
export function openEvals() {
  addFields($("eval-fields"), FIELDS);
  const form = $("eval-form");
  const follow = () => {
    const graded = form.elements.grader.value;
    form.elements.judge.disabled = graded !== "graderModel";
    form.elements.pass_threshold.disabled = !["graderSimilar", "graderModel"].includes(graded);
  };
  form.oninput = follow;
  follow();
  form.onsubmit = (event) => {
    event.preventDefault();
    make(form);
  };
  attempt(() => offer(form.elements));
  return poll(SECONDS, refresh);
}

async function refresh() {
  showList($("eval-list"), await listAll("v1/evals"), ({ id }) => id, row);
}

async function offer(elements) {
  const [files, { data: models }] = await Promise.all([listAll("v1/files"), request("v1/models")]);
  const refill = (select, options) => {
    const before = select.value;
    select.replaceChildren(...options);
    if (options.some(({ value }) => value === before)) select.value = before;
  };
  refill(elements.file, files.map(({ id, filename }) => new Option(`${filename} (${id})`, id)));
  refill(elements.judge, models.map(({ id }) => new Option(id, id)));
}

function row(made) {
  const { id, name, testing_criteria: criteria, created_at: created } = made;
  const link = sectionLink("eval", id, name);
  const about = classed("p", "quiet", `${criteria.map(({ name: one, type }) => `${one} (${type})`).join(", ")} · `, moment(created));
  return classed("li", "card", element("h3", link), about,
    actions([sectionLink("eval", id, t("runAndCompare")), button("remove", () => remove(made))], name));
}

async function remove({ id, name }) {
  if ((await ask(t("removeLabel", { name }), null, "remove")) === null) return;
  await attempt(async () => {
    await request(pathOf("v1/evals", id), { method: "DELETE" });
    announce(t("changed"));
    await refresh();
  });
}

/** Questions of a training file become items; those that are items already are left as they are. */
function make(form) {
  const { elements } = form;
  return submit(form, $("eval-error"), async () => {
    const text = await requestText(pathOf("v1/files", elements.file.value, "content"));
    const lines = text.split("\n").filter(Boolean).map((line) => JSON.parse(line));
    const ready = lines.every(({ item }) => item);
    const file = ready ? elements.file.value : await uploadItems(elements.name.value, lines.map(itemOf));
    const prompt = elements.prompt.value.trim() || (ready ? "{{item.question}}" : "");
    const json = {
      name: elements.name.value.trim(),
      data_source_config: { type: "custom", item_schema: { type: "object" } },
      testing_criteria: [criterion(elements, prompt || "{{item.question}}")],
      metadata: { file, ...(prompt && { prompt }) },
    };
    const made = await request("v1/evals", { json });
    $("new-eval").open = false;
    location.hash = `#/eval/${encodeURIComponent(made.id)}`;
  });
}

/** A record of training: what was asked, and the answer that it teaches. */
function itemOf(record) {
  const messages = record.messages ?? record.input?.messages ?? [{ role: "user", content: record.prompt ?? "" }];
  const answer = record.preferred_output?.[0] ?? (record.messages ? messages.at(-1) : { content: record.completion ?? "" });
  const input = record.messages ? messages.slice(0, -1) : messages;
  return { item: { input, question: textOf(input.at(-1)?.content), answer: textOf(answer.content) } };
}

async function uploadItems(name, items) {
  const body = new FormData();
  body.append("purpose", "evals");
  body.append("file", new Blob(items.map((one) => `${JSON.stringify(one)}\n`)), `${name.replaceAll(/[\\/]/g, "-")}.jsonl`);
  return (await request("v1/files", { body })).id;
}

function criterion(elements, question) {
  const reference = elements.reference.value.trim() || "{{item.answer}}";
  const answer = "{{sample.output_text}}";
  const common = { input: answer, reference };
  const { pass_threshold: from = 0.5 } = numbers(elements, ["pass_threshold"]);
  const judged = JUDGED.replace("{question}", question).replace("{reference}", reference).replace("{answer}", answer);
  return {
    graderSimilar: { type: "text_similarity", name: "similar", evaluation_metric: "rouge_l", pass_threshold: from, ...common },
    graderEqual: { type: "string_check", name: "equal", operation: "eq", ...common },
    graderContains: { type: "string_check", name: "contains", operation: "ilike", ...common },
    graderModel: {
      type: "score_model", name: "judged", model: elements.judge.value, pass_threshold: from,
      input: [{ role: "user", content: judged }],
    },
  }[elements.grader.value];
}
