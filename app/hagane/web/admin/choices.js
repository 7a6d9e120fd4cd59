/** Choices of models: the base, adapters, and the checkpoints of jobs. */

import { listModels } from "../shared/api.js";
import { element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { loadKey } from "../shared/keys.js";
import { pathOf, request } from "./client.js";

/** Jobs whose checkpoints are offered as well. */
const JOBS = 10;

/**
 * Fill choices, the third and further ones with "none": at first the base, and what is to be
 * compared with it.
 * @param {HTMLSelectElement[]} selects
 * @param {string} model what is compared with the base, or ""
 * @throws {import("../shared/api.js").ApiError}
 */
export async function offerModels(selects, model) {
  const models = await listModels(loadKey("adminKey"));
  const checkpoints = await listCheckpoints();
  const known = [...models.map(({ id }) => id), ...checkpoints];
  if (model && !known.includes(model)) checkpoints.push(model);
  const second = model || models.find(({ parent }) => parent)?.id || known[0];
  const chosen = [models[0].id, second, ""];
  selects.forEach((select, at) => {
    const before = select.value;
    const groups = [group("engines", models.map(({ id }) => id)), group("checkpoints", checkpoints)];
    select.replaceChildren(...(at >= 2 ? [new Option(t("none"), "")] : []), ...groups.filter(Boolean));
    select.value = before && !model && known.includes(before) ? before : chosen[at] ?? "";
  });
}

function group(word, names) {
  if (!names.length) return null;
  const made = element("optgroup", ...names.map((name) => new Option(name, name)));
  made.label = t(word);
  return made;
}

async function listCheckpoints() {
  const { data } = await request(`v1/fine_tuning/jobs?limit=${JOBS}`);
  const lists = await Promise.all(data.map(({ id }) =>
    request(`${pathOf("v1/fine_tuning/jobs", id, "checkpoints")}?limit=100`)));
  return lists.flatMap((list) => list.data.map(({ fine_tuned_model_checkpoint: name }) => name));
}
