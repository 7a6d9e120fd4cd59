/** The choice of models: bases first, then what was tuned from each. */

import { t } from "../shared/i18n.js";

/**
 * Fill `select` with `models`, adapters and aliases grouped by what they were tuned from.
 * @param {HTMLSelectElement} select
 * @param {{id: string, parent?: ?string}[]} models
 * @param {string} wanted chosen when it is there; else the first
 * @returns {string} the chosen model's id
 */
export function offerModels(select, models, wanted) {
  const groups = Map.groupBy(models, ({ parent }) => parent ?? "");
  const option = ({ id }) => new Option(id, id);
  const bases = (groups.get("") ?? []).map(option);
  groups.delete("");
  const tuned = Array.from(groups, ([base, members]) => {
    const group = document.createElement("optgroup");
    group.label = t("adapters", { base });
    group.append(...members.map(option));
    return group;
  });
  select.replaceChildren(...bases, ...tuned);
  select.value = models.some(({ id }) => id === wanted) ? wanted : models[0].id;
  return select.value;
}
