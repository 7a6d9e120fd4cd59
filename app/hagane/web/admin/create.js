/** The form for a new fine-tuning job. */

import { ApiError, listModels } from "../shared/api.js";
import { element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { loadKey } from "../shared/keys.js";
import { listAll, request } from "./client.js";
import { attempt, describe } from "./notice.js";

const $ = (id) => document.getElementById(id);
const TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
const HYPERPARAMETERS = ["n_epochs", "batch_size", "learning_rate_multiplier"];
const EXTRA = ["rank", "alpha", "learning_rate", "sequence_length"];

/**
 * Fill the form's choices and make it work.
 * @param {string} file id of the training file to begin with, or ""
 */
export function prepareCreation(file) {
  const form = $("create-form");
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
  if (file) $("create").open = true;
  attempt(() => offer(form, file));
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
 * @throws {ApiError}
 */
export async function offerBases(select) {
  const bases = (await listModels(loadKey("adminKey"))).filter(({ parent }) => !parent);
  const before = select.value;
  select.replaceChildren(...bases.map(({ id }) => new Option(id, id)));
  if (bases.some(({ id }) => id === before)) select.value = before;
}

/** The body of a job: what was left empty is left out, so that the server decides. */
function body({ elements }) {
  const numbers = (names) => Object.fromEntries(names
    .filter((name) => elements[name].value !== "")
    .map((name) => [name, Number(elements[name].value)]));
  const method = elements.method.value;
  const hyperparameters = numbers(
    method === "supervised" ? HYPERPARAMETERS : [...HYPERPARAMETERS, "beta"]);
  const chosen = [...elements.target].filter(({ checked }) => checked).map(({ value }) => value);
  const extra = {
    ...numbers(EXTRA),
    // Left out, it is what this server serves: an adapter is trained on what it will stand on.
    ...(elements.quantize.value && { quantize: elements.quantize.value }),
    promote: elements.promote.value,
    rslora: elements.rslora.checked,
    full: elements.full.checked,
  };
  if (!extra.full && chosen.length < TARGETS.length) extra.target_modules = chosen;
  const made = {
    model: elements.model.value,
    training_file: elements.training_file.value,
    method: { type: method, [method]: { hyperparameters } },
    extra,
    ...numbers(["seed"]),
  };
  for (const name of ["validation_file", "suffix"]) {
    if (elements[name].value.trim()) made[name] = elements[name].value.trim();
  }
  return made;
}

/** Lead to the field that the server complained about, such as `method.dpo.hyperparameters.beta`. */
function point(form, param) {
  const name = param.split(".").findLast((part) => form.elements[part] instanceof HTMLElement);
  if (!name) return;
  form.elements[name].setAttribute("aria-invalid", "true");
  form.elements[name].focus();
}

async function create(form) {
  const complaint = $("create-error");
  complaint.hidden = true;
  for (const field of form.elements) field.removeAttribute("aria-invalid");
  await attempt(async () => {
    try {
      const job = await request("v1/fine_tuning/jobs", { json: body(form) });
      $("create").open = false;
      location.hash = `#/job/${encodeURIComponent(job.id)}`;
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 400) throw error;
      complaint.textContent = describe(error);
      complaint.hidden = false;
      point(form, error.param ?? "");
    }
  });
}
