/** The dialog that makes an alias or points it elsewhere, and says how a candidate is judged. */

import { listModels } from "../shared/api.js";
import { prepareDialog } from "../shared/dialogs.js";
import { t } from "../shared/i18n.js";
import { loadKey } from "../shared/keys.js";
import { pathOf, request } from "./client.js";
import { addFields, numbers } from "./fields.js";
import { announce, attempt } from "./notice.js";

const $ = (id) => document.getElementById(id);
const COUNT = { type: "number", min: "1", step: "1" };
const PART = { type: "number", min: "0", max: "1", step: "any" };
const POLICY = [
  ["min_requests", "minRequests", { ...COUNT, placeholder: "100", "data-help": "minRequestsHelp" }],
  ["max_error_rate", "maxErrorRate", { ...PART, placeholder: "0.02", "data-help": "maxErrorRateHelp" }],
  ["max_latency_ratio", "maxLatencyRatio", { ...PART, max: "1000", "data-help": "maxLatencyRatioHelp" }],
  ["min_win_rate", "minWinRate", { ...PART, "data-help": "minWinRateHelp" }],
  ["confidence", "confidence", { ...PART, min: "0.5", placeholder: "0.95", "data-help": "confidenceHelp" }],
  ["max_requests", "maxRequests", { ...COUNT, "data-help": "maxRequestsHelp" }],
  ["webhook", "webhook", { type: "url", "data-help": "webhookHelp" }],
];

/**
 * Show the dialog.
 * @param {?{name: string, target: string, candidate: ?string, percentage: number,
 *   generation: number}} alias null: a new one
 * @param {() => Promise<void>} changed called after a change
 * @param {string} [target] what a new one is to point to
 */
export async function editAlias(alias, changed, target = "") {
  const dialog = $("alias");
  addFields($("policy-fields"), POLICY);
  const form = prepareDialog(dialog, ({ elements }) => save(elements, alias, changed));
  const { elements } = form;
  let canary = null;
  const went = await attempt(async () => {
    const models = (await listModels(loadKey("adminKey"))).map(({ id }) => id).filter((id) => id !== alias?.name);
    // Checkpoints are not listed, but can be pointed to.
    const known = new Set([...models, target, alias?.target, alias?.candidate].filter(Boolean));
    const options = () => [...known].map((id) => new Option(id, id));
    elements.target.replaceChildren(...options());
    elements.candidate.replaceChildren(new Option(t("noCandidate"), ""), ...options());
    if (alias) ({ canary } = await request(pathOf("admin/aliases", alias.name)));
  });
  if (!went) return;
  elements.name.value = alias?.name ?? "";
  elements.name.readOnly = alias !== null;
  if (alias || target) elements.target.value = alias?.target ?? target;
  elements.candidate.value = alias?.candidate ?? "";
  elements.percentage.value = alias?.percentage ?? 0;
  // A trial that runs goes on by the same policy, from its beginning, unless it is changed here.
  const policy = canary?.state === "running" ? canary.policy : {};
  elements.judged.checked = canary?.state === "running";
  elements.judged.closest("details").open = elements.judged.checked;
  for (const [name] of POLICY) elements[name].value = policy[name] ?? "";
  dialog.showModal();
  (alias ? elements.target : elements.name).focus();
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
    if (elements.judged.checked) {
      const names = POLICY.map(([name]) => name).filter((name) => name !== "webhook");
      json.policy = numbers(elements, names);
      if (elements.webhook.value) json.policy.webhook = elements.webhook.value;
    }
    await request("admin/aliases", { json });
    announce(t("changed"));
    await changed();
  });
}
