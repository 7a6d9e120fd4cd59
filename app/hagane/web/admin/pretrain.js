/** The form for a pretraining job: a new model from texts, or one that is trained further. */

import { element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { listAll, request } from "./client.js";
import { offerBases } from "./create.js";
import { addFields, numbers } from "./fields.js";
import { number } from "./list.js";
import { attempt } from "./notice.js";
import { submit } from "./submit.js";

const $ = (id) => document.getElementById(id);
const COUNT = { type: "number", min: "1", step: "1" };
const POSITIVE = { type: "number", min: "0", step: "any" };
const FIELDS = [
  ["name", "name", { required: "", maxlength: "64", pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]*", "data-help": "modelNameHelp" }],
  ["start_from", "startFrom", { "data-help": "startFromHelp" }, []],
  ["parameters", "parameters", { placeholder: "10M", pattern: "[0-9.]+[KMBkmb]?", "data-help": "parametersHelp" }],
  ["vocab_size", "vocabulary", { ...COUNT, min: "300", max: "65536", placeholder: "8192", "data-help": "vocabularyHelp" }],
  ["sequence_length", "sequenceLength", { ...COUNT, min: "16", placeholder: "512", "data-help": "trainedLengthHelp" }],
  ["batch_rows", "batchRows", { ...COUNT, placeholder: "16", "data-help": "batchRowsHelp" }],
  ["steps", "steps", { ...COUNT, required: "", "data-help": "stepsHelp" }],
  ["promote", "promoteWhen", { wide: true, "data-help": "promoteWhenHelp" }, ["betterOrNew", "always", "manually"]],
];
const MORE = [
  ["learning_rate", "learningRate", { ...POSITIVE, placeholder: "0.006", "data-help": "peakRateHelp" }],
  ["warmup_steps", "warmup", { ...COUNT, min: "0", placeholder: "50", "data-help": "warmupHelp" }],
  ["optimizer", "optimizer", { "data-help": "optimizerHelp" }, ["muon", "adamw"]],
  ["dtype", "precision", { "data-help": "precisionHelp" }, ["float32", "bfloat16"]],
  ["held_out", "heldOutPart", { ...POSITIVE, max: "0.5", placeholder: "0.005", "data-help": "heldOutTextHelp" }],
  ["max_bits_per_byte", "mostBits", { ...POSITIVE, "data-help": "mostBitsHelp" }],
  ["checkpoint_every", "checkpointEvery", { ...COUNT, placeholder: "200", "data-help": "checkpointEveryHelp" }],
  ["seed", "seed", { ...COUNT, min: "0", placeholder: "0", "data-help": "seedHelp" }],
];
const NUMBERS = ["sequence_length", "batch_rows", "steps", "learning_rate", "warmup_steps", "held_out", "checkpoint_every", "seed"];
const POLICIES = { betterOrNew: "if_better", always: "always", manually: "manual" };
/** Of a run without a number of its own, as the placeholders say. */
const USUAL = { sequence_length: 512, batch_rows: 16 };

/** Fill the form's choices and make it work. */
export function preparePretraining() {
  const form = $("pretrain-form");
  addFields($("pretrain-fields"), FIELDS);
  addFields($("pretrain-more"), MORE);
  const follow = () => {
    const fresh = form.elements.start_from.value === "";
    for (const name of ["parameters", "vocab_size"]) form.elements[name].disabled = !fresh;
    form.elements.parameters.required = fresh;
    showSize(form.elements);
  };
  form.oninput = follow;
  form.onsubmit = (event) => {
    event.preventDefault();
    create(form);
  };
  attempt(async () => {
    await offer(form);
    follow();
  });
}

async function offer({ elements }) {
  const files = await listAll("v1/files");
  const chosen = new Set([...$("pretrain-texts").querySelectorAll(":checked")].map(({ value }) => value));
  $("pretrain-texts").replaceChildren(...(files.length ? files.map((file) => textBox(file, chosen)) : [t("noTexts")]));
  const start = elements.start_from;
  const before = start.value;
  await offerBases(start);
  start.prepend(new Option(t("newModel"), ""));
  start.value = [...start.options].some(({ value }) => value === before) ? before : "";
}

function textBox({ id, filename }, chosen) {
  const box = element("input");
  box.type = "checkbox";
  box.name = "corpora";
  box.value = id;
  box.checked = chosen.has(id);
  return element("label", box, element("span", `${filename} (${id})`));
}

function showSize(elements) {
  const value = (name) => Number(elements[name].value) || USUAL[name] || 0;
  const tokens = value("steps") * value("batch_rows") * value("sequence_length");
  $("pretrain-size").textContent = tokens ? t("tokensInAll", { count: number(tokens) }) : "";
}

/** What was left empty is left out, so that the server's own values hold. */
function body({ elements }) {
  const chosen = [...$("pretrain-texts").querySelectorAll(":checked")];
  const config = {
    corpora: chosen.map(({ value }) => ({ path: value })),
    optimizer: elements.optimizer.value,
    dtype: elements.dtype.value,
    compile: elements.compile.checked,
    ...numbers(elements, NUMBERS),
  };
  if (elements.start_from.value) config.start_from = elements.start_from.value;
  else Object.assign(config, { parameters: elements.parameters.value.trim() }, numbers(elements, ["vocab_size"]));
  return {
    name: elements.name.value.trim(),
    config,
    promote: POLICIES[elements.promote.value],
    ...numbers(elements, ["max_bits_per_byte"]),
  };
}

function create(form) {
  return submit(form, $("pretrain-error"), async () => {
    const job = await request("admin/pretraining/jobs", { json: body(form) });
    $("pretrain").open = false;
    location.hash = `#/job/${encodeURIComponent(job.id)}`;
  });
}
