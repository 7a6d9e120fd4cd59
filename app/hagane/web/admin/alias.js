/** The dialog that makes an alias or points it elsewhere. */

import { listModels } from "../shared/api.js";
import { prepareDialog } from "../shared/dialogs.js";
import { t } from "../shared/i18n.js";
import { loadKey } from "../shared/keys.js";
import { request } from "./client.js";
import { announce, attempt } from "./notice.js";

/**
 * Show the dialog.
 * @param {?{name: string, target: string, candidate: ?string, percentage: number,
 *   generation: number}} alias null: a new one
 * @param {() => Promise<void>} changed called after a change
 */
export async function editAlias(alias, changed) {
  const dialog = document.getElementById("alias");
  const form = prepareDialog(dialog, ({ elements }) => save(elements, alias, changed));
  const { name, target, candidate, percentage } = form.elements;
  const went = await attempt(async () => {
    const models = (await listModels(loadKey("adminKey"))).filter(({ id }) => id !== alias?.name);
    const options = () => models.map(({ id }) => new Option(id, id));
    target.replaceChildren(...options());
    candidate.replaceChildren(new Option(t("noCandidate"), ""), ...options());
  });
  if (!went) return;
  name.value = alias?.name ?? "";
  name.readOnly = alias !== null;
  if (alias) target.value = alias.target;
  candidate.value = alias?.candidate ?? "";
  percentage.value = alias?.percentage ?? 0;
  dialog.showModal();
  (alias ? target : name).focus();
}

function save(elements, alias, changed) {
  return attempt(async () => {
    const json = {
      name: elements.name.value.trim(),
      target: elements.target.value,
      expected_generation: alias?.generation ?? 0,
    };
    if (elements.candidate.value) {
      json.candidate = elements.candidate.value;
      json.percentage = Number(elements.percentage.value);
    }
    await request("admin/aliases", { json });
    announce(t("changed"));
    await changed();
  });
}
