/** Data sets: built of stored answers and feedback by a filter, previewed, counted, edited. */

import { ask } from "../shared/dialogs.js";
import { button, classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { listAll, pathOf, request } from "./client.js";
import { editDataset } from "./editor.js";
import { addFields, beginning, numbers } from "./fields.js";
import { actions, moment, number, sectionLink, showFacts, showList } from "./list.js";
import { announce, attempt, poll } from "./notice.js";
import { showRecord } from "./records.js";

const $ = (id) => document.getElementById(id);
const SECONDS = 10;
const PREVIEWED = 10;
const DUPLICATES = new Map([["nearDuplicates", "near"], ["exactDuplicates", "exact"], ["keepDuplicates", "keep"]]);
const METHODS = ["supervised", "dpo"];
const COUNT = { type: "number", min: "1", step: "1" };
const LIST = { "data-help": "listHelp" };
const FIELDS = [
  ["name", "name", { required: "", maxlength: "128", "data-help": "datasetNameHelp" }],
  ["method", "method", { "data-help": "datasetMethodHelp" }, METHODS],
  ["models", "ofModels", LIST],
  ["aliases", "ofAliases", LIST],
  ["tags", "tags", LIST],
  ["created_after", "createdAfter", { type: "date", "data-help": "createdAfterHelp" }],
  ["created_before", "createdBefore", { type: "date", "data-help": "createdBeforeHelp" }],
  ["min_score", "minScore", { type: "number", min: "0", max: "1", step: "any", placeholder: "0.5", "data-help": "minScoreHelp" }],
  ["min_characters", "minCharacters", { ...COUNT, placeholder: "1", "data-help": "minCharactersHelp" }],
  ["duplicates", "duplicates", { "data-help": "duplicatesHelp" }, [...DUPLICATES.keys()]],
  ["validation", "heldOutPart", { type: "number", min: "0", max: "0.5", step: "any", placeholder: "0.1", "data-help": "heldOutHelp" }],
  ["max_records", "maxRecords", { ...COUNT, max: "1000000", placeholder: "100000", "data-help": "maxRecordsHelp" }],
];
const NUMBERS = ["min_score", "min_characters", "validation", "max_records"];

/** @returns {() => void} */
export function openDatasets() {
  addFields($("dataset-fields"), FIELDS);
  $("preview-result").hidden = $("editor").hidden = true;
  const form = $("dataset-form");
  $("preview").onclick = () => preview(form);
  form.onsubmit = (event) => {
    event.preventDefault();
    build(form);
  };
  return poll(SECONDS, refresh);
}

async function refresh() {
  showList($("dataset-list"), await listAll("v1/datasets"), ({ id }) => id, row);
}

/** What was left empty is left out, so that the server's own values hold. */
function filterOf({ elements }) {
  const filter = {
    method: elements.method.value,
    duplicates: DUPLICATES.get(elements.duplicates.value),
    answers: [...elements.answers].filter(({ checked }) => checked).map(({ value }) => value),
    ...numbers(elements, NUMBERS),
  };
  for (const name of ["models", "aliases", "tags"]) {
    const names = elements[name].value.split(",").map((one) => one.trim()).filter(Boolean);
    if (names.length) filter[name] = names;
  }
  for (const name of ["created_after", "created_before"]) {
    const moment = beginning(elements[name].value);
    if (moment !== null) filter[name] = moment;
  }
  return filter;
}

function preview(form) {
  return attempt(async () => {
    const json = { filter: filterOf(form), limit: PREVIEWED };
    const { card, records } = await request("v1/datasets/preview", { json });
    const facts = classed("dl", "facts");
    showFacts(facts, factsOf(card));
    const none = classed("p", "quiet", t("noRecords"));
    $("preview-body").replaceChildren(facts, ...(records.length ? records.map(showRecord) : [none]));
    $("preview-result").hidden = false;
    $("preview-result").focus();
  });
}

async function build(form) {
  const send = form.querySelector(".primary");
  send.disabled = true;
  await attempt(async () => {
    const json = { name: form.elements.name.value.trim(), filter: filterOf(form) };
    const made = await request("v1/datasets", { json });
    announce(t("built", { name: made.name, count: number(made.card.records) }));
    $("new-dataset").open = false;
    await refresh();
  });
  send.disabled = false;
}

/** Why an answer was taken or left out, in words; a reason that is not here stands as it came. */
const REASONS = {
  corrected: "corrected",
  liked: "liked",
  unjudged: "unjudged",
  disliked: "thumbsDown",
  unfinished: "unfinished",
  undecided: "undecided",
  personal_data: "personalData",
  exact_duplicate: "equalToAnother",
  near_duplicate: "similarToAnother",
  too_short: "tooShort",
  too_long: "tooLong",
  invalid: "notARecord",
};

/** The counts of a card; those by reason or by model stand one by one. */
function factsOf(card) {
  const said = (name) => (Object.hasOwn(REASONS, name) ? t(REASONS[name]) : name);
  const sums = (word, counts, spoken = (name) => name) =>
    Object.entries(counts ?? {}).map(([name, count]) => [`${t(word)}: ${spoken(name)}`, count]);
  return [
    [t("records"), card.records],
    [t("forTraining"), card.training],
    [t("forValidation"), card.validation],
    [t("conversations"), card.conversations],
    [t("characters"), card.characters],
    ...sums("takenAs", card.reasons, said),
    ...sums("model", card.models),
    ...sums("masked", card.masked),
    ...sums("leftOut", card.skipped, said),
  ];
}

function row(dataset) {
  const { id, name, method, version, card, training_file: file, created_at: created, parent } = dataset;
  const about = [id, t(METHODS.includes(method) ? method : "supervised"), parent && t("madeFrom", { id: parent })];
  const facts = classed("dl", "facts");
  showFacts(facts, factsOf(card));
  const tools = [
    button("edit", () => editDataset(dataset, refresh)),
    button("remove", () => remove(dataset)),
    sectionLink("jobs", file, t("tuneWith")),
  ];
  return classed("li", "card",
    element("h3", version ? `${name} (${t("version", { number: version })})` : name),
    classed("p", "quiet", `${about.filter(Boolean).join(" · ")} · `, moment(created)),
    facts,
    actions(tools, name));
}

async function remove({ id, name }) {
  if ((await ask(t("removeLabel", { name }), null, "remove")) === null) return;
  await attempt(async () => {
    await request(pathOf("v1/datasets", id), { method: "DELETE" });
    announce(t("changed"));
    await refresh();
  });
}
