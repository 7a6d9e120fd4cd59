/** The form for a new fine-tuning job. */

import { listModels } from "../shared/api.js";
import { element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { loadKey } from "../shared/keys.js";
import { listAll, pathOf, request } from "./client.js";
import { numbers } from "./fields.js";
import { attempt } from "./notice.js";
import { submit } from "./submit.js";

const $ = (id) => document.getElementById(id);
const TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
const HYPERPARAMETERS = ["n_epochs", "batch_size", "learning_rate_multiplier"];
const EXTRA = ["rank", "alpha", "learning_rate", "sequence_length"];
const METHODS = ["supervised", "dpo", "orpo", "kto"];
/** Options without a field in the form. */
const KEPT = ["patience", "seeds", "data_parallel", "neftune_alpha", "teacher", "teacher_weight"];

/** Those of the job that is made again. */
let kept = {};

/**
 * Fill the form's choices and make it work.
 * @param {string} beginning id of the training file to begin with, or of the job to make again with
 *   changes, or ""
 */
export function prepareCreation(beginning) {
  const form = $("create-form");
  showKept({});
  const { method, full } = form.elements;
  const follow = () => ($("beta").hidden = method.value === "supervised");
  method.onchange = follow;
  follow();
  if (!$("targets").childElementCount) $("targets").append(...TARGETS.map(checkbox));
  full.onchange = () => ($("targets").closest("fieldset").disabled = full.checked);
  form.onsubmit = (event) => {
    event.preventDefault();
    create(form);
  };
  if (beginning) $("create").open = true;
  const isJob = beginning.startsWith("ftjob-");
  attempt(async () => {
    await offer(form, isJob ? "" : beginning);
    if (isJob) fill(form, await request(pathOf("v1/fine_tuning/jobs", beginning)));
  });
}

/**
 * Whether the form can make such a job: its methods are those that need no grader.
 * @param {object} job
 * @returns {boolean}
 */
export function canRepeat({ object, method }) {
  return object === "fine_tuning.job" && METHODS.includes(method.type);
}

/** Put what `job` was made with into the form. */
function fill(form, job) {
  const { elements } = form;
  const put = (name, value) => (elements[name].value = value === "auto" || value === undefined ? "" : value);
  const { hyperparameters: used, extra } = job;
  elements.method.value = job.method.type;
  elements.method.onchange();
  elements.model.value = job.model;
  for (const name of ["training_file", "validation_file"]) elements[name].value = job[name] ?? "";
  for (const name of [...HYPERPARAMETERS, "beta"]) put(name, used[name]);
  for (const name of [...EXTRA, "quantize"]) put(name, extra[name]);
  put("seed", job.seed);
  put("checkpointing", extra.checkpointing?.toString());
  elements.trained_tokens.value = (extra.trained_tokens ?? []).join("\n");
  const [, suffix = ""] = extra.adapter.match(/^ft:.*:([^:]*):[^:]*$/) ?? [];
  elements.suffix.value = suffix;
  elements.promote.value = extra.promote;
  for (const name of ["rslora", "dora", "full"]) elements[name].checked = extra[name] ?? false;
  elements.full.onchange();
  const targets = extra.target_modules ?? TARGETS;
  for (const box of elements.target) box.checked = targets.includes(box.value);
  $("create").querySelector("details").open = true;
  showKept(Object.fromEntries(KEPT.filter((name) => name in extra).map((name) => [name, extra[name]])));
  elements.training_file.focus();
}

/** What the form has no field for goes on as it was, and is said. */
function showKept(options) {
  kept = options;
  const said = Object.entries(kept).map(([name, value]) => `${name} ${value}`).join(", ");
  $("create-kept").textContent = said && t("keptOptions", { options: said });
  $("create-kept").hidden = !said;
}

function checkbox(name) {
  const box = element("input");
  box.type = "checkbox";
  box.name = "target";
  box.value = name;
  box.checked = true;
  return element("label", box, ` ${name}`);
}

async function offer(form, file) {
  const files = (await listAll("v1/files")).filter(({ purpose }) => purpose === "fine-tune");
  const options = () => files.map(({ id, filename }) => new Option(`${filename} (${id})`, id));
  const { model, training_file: training, validation_file: validation } = form.elements;
  const [before, beside] = [file || training.value, validation.value];
  training.replaceChildren(...options());
  validation.replaceChildren(new Option(t("heldOut"), ""), ...options());
  if (files.some(({ id }) => id === before)) training.value = before;
  validation.value = files.some(({ id }) => id === beside) ? beside : "";
  await offerBases(model);
}

/**
 * Fill `select` with the models that can be tuned.
 * @param {HTMLSelectElement} select
 * @throws {import("../shared/api.js").ApiError}
 */
export async function offerBases(select) {
  const bases = (await listModels(loadKey("adminKey"))).filter(({ parent }) => !parent);
  const before = select.value;
  select.replaceChildren(...bases.map(({ id }) => new Option(id, id)));
  if (bases.some(({ id }) => id === before)) select.value = before;
}

/** The body of a job: what was left empty is left out, so that the server decides. */
function body({ elements }) {
  const method = elements.method.value;
  const hyperparameters = numbers(
    elements, method === "supervised" ? HYPERPARAMETERS : [...HYPERPARAMETERS, "beta"]);
  const chosen = [...elements.target].filter(({ checked }) => checked).map(({ value }) => value);
  const extra = {
    ...kept,
    ...numbers(elements, EXTRA),
    // Left out, it is what this server serves: an adapter is trained on what it will stand on.
    ...(elements.quantize.value && { quantize: elements.quantize.value }),
    promote: elements.promote.value,
    rslora: elements.rslora.checked,
    dora: elements.dora.checked,
    full: elements.full.checked,
    ...(elements.checkpointing.value && { checkpointing: elements.checkpointing.value === "true" }),
  };
  const tokens = elements.trained_tokens.value.split("\n").filter((line) => line.trim());
  if (tokens.length) extra.trained_tokens = tokens;
  if (!extra.full && chosen.length < TARGETS.length) extra.target_modules = chosen;
  const made = {
    model: elements.model.value,
    training_file: elements.training_file.value,
    method: { type: method, [method]: { hyperparameters } },
    extra,
    ...numbers(elements, ["seed"]),
  };
  for (const name of ["validation_file", "suffix"]) {
    if (elements[name].value.trim()) made[name] = elements[name].value.trim();
  }
  return made;
}

async function create(form) {
  await submit(form, $("create-error"), async () => {
    const job = await request("v1/fine_tuning/jobs", { json: body(form) });
    $("create").open = false;
    location.hash = `#/job/${encodeURIComponent(job.id)}`;
  });
}
