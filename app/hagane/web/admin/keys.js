/** API keys: made, limited, revoked, and what each used by day. */

import { copyText } from "../shared/clipboard.js";
import { ask, prepareDialog } from "../shared/dialogs.js";
import { button, classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { LineChart } from "./chart.js";
import { listAll, pathOf, request } from "./client.js";
import { addFields, beginning, numbers } from "./fields.js";
import { actions, grid, moment, number, showList } from "./list.js";
import { announce, attempt, poll } from "./notice.js";

const $ = (id) => document.getElementById(id);
const SECONDS = 10;
const DAY = 86_400;
const LIMITS = ["requests_per_minute", "tokens_per_minute", "concurrent_requests"];
const LIMIT_HELP = ["requestsPerMinuteHelp", "tokensPerMinuteHelp", "concurrentRequestsHelp"];
const LIMIT_WORDS = ["requestsPerMinute", "tokensPerMinute", "concurrentRequests"];
const COUNT = { type: "number", min: "1", step: "1", "data-i18n-placeholder": "asSet" };

/** @returns {() => void} */
export function openKeys() {
  forget();
  addFields($("key-fields"), [
    ...LIMITS.map((name, at) => [name, LIMIT_WORDS[at], { ...COUNT, "data-help": LIMIT_HELP[at] }]),
    ["expires", "expires", { type: "date", "data-help": "expiresHelp" }],
  ]);
  $("new-key").onclick = () => edit(null);
  const chart = new LineChart($("chart-use"), {
    xName: () => t("daysAgo"), yName: () => t("tokens"), from: 0, to: 10, whole: true,
  });
  $("use-form").onchange = () => attempt(() => showUse(chart));
  const stop = poll(SECONDS, async () => {
    await refresh();
    await showUse(chart);
  });
  return () => {
    stop();
    forget();
  };
}

async function refresh() {
  const keys = await listAll("admin/keys");
  showList($("key-list"), keys, ({ id }) => id, row);
  const select = $("use-form").elements.key_id;
  const before = select.value;
  select.replaceChildren(new Option(t("allKeys"), ""), ...keys.map(({ id, name }) => new Option(name, id)));
  select.value = keys.some(({ id }) => id === before) ? before : "";
}

function row(key) {
  const { name, hint, label, limits, created_at: created, expires_at: expires, revoked_at: revoked } = key;
  const ended = expires && expires * 1000 < Date.now();
  const state = revoked ? "revoked" : ended ? "expired" : "valid";
  const badge = classed("span", `badge ${state === "valid" ? "succeeded" : "failed"}`, t(state));
  const bounds = LIMITS.flatMap((limit, at) =>
    limits[limit] ? [`${t(LIMIT_WORDS[at])}: ${number(limits[limit])}`] : []);
  if (key.priority) bounds.push(t("withPriority"));
  const about = classed("p", "quiet", `${hint} · ${label} · ${t("created")} `, moment(created));
  if (expires) about.append(` · ${t("expires")} `, moment(expires - 1));
  if (revoked) about.append(` · ${t("revoked")} `, moment(revoked));
  const made = classed("li", "card", element("h3", name, " ", badge), about,
    element("p", bounds.join(" · ") || t("noLimits")));
  if (!revoked) made.append(actions([
    button("change", () => edit(key)),
    button("revoke", () => revoke(key)),
  ], name));
  return made;
}

/** Show the dialog for a new key, or for the limits of `key`. */
function edit(key) {
  const dialog = $("key-dialog");
  const { elements } = prepareDialog(dialog, (form) => save(form.elements, key));
  elements.name.value = key?.name ?? "";
  for (const name of LIMITS) elements[name].value = key?.limits[name] ?? "";
  elements.expires.value = key?.expires_at ? dayOf(key.expires_at) : "";
  elements.priority.checked = key?.priority ?? false;
  dialog.showModal();
  elements.name.focus();
}

/** The last day on which a key is valid, as a field of type `date` wants it. */
function dayOf(seconds) {
  const date = new Date((seconds - 1) * 1000);
  const two = (part) => String(part).padStart(2, "0");
  return [date.getFullYear(), two(date.getMonth() + 1), two(date.getDate())].join("-");
}

function save(elements, key) {
  const set = numbers(elements, LIMITS);
  const json = {
    name: elements.name.value.trim(),
    limits: Object.fromEntries(LIMITS.map((name) => [name, set[name] ?? null])),
    priority: elements.priority.checked,
  };
  const before = key?.expires_at ? dayOf(key.expires_at) : "";
  if (elements.expires.value !== before) json.expires_at = beginning(elements.expires.value, 1);
  return attempt(async () => {
    const made = await request(key ? pathOf("admin/keys", key.id) : "admin/keys", { json });
    announce(t("changed"));
    await refresh();
    if (!key) reveal(made.key);
  });
}

/** The one moment at which a key can be read. */
function reveal(key) {
  $("made-key-text").textContent = key;
  $("copy-key").onclick = ({ target }) => copyText(key, target);
  $("made-key").hidden = false;
  $("made-key").focus();
}

function forget() {
  $("made-key").hidden = true;
  $("made-key-text").textContent = "";
  $("copy-key").onclick = null;
}

async function revoke({ id, name }) {
  if ((await ask(t("revokeLabel", { name }), null, "remove")) === null) return;
  await attempt(async () => {
    await request(pathOf("admin/keys", id), { method: "DELETE" });
    forget();
    announce(t("changed"));
    await refresh();
  });
}

async function showUse(chart) {
  const { key_id: key, days } = $("use-form").elements;
  const asked = new URLSearchParams({ days: days.value });
  if (key.value) asked.set("key_id", key.value);
  const { data } = await request(`admin/key_usage?${asked}`);
  chart.show([line("promptTokens", data, "prompt_tokens"), line("generatedTokens", data, "generated_tokens")]);
  const heads = ["day", "key", "requests", "refused", "promptTokens", "generatedTokens"].map((word) => t(word));
  const rows = data.map(({ day, label, name, ...use }) => [
    day,
    name ? `${name} (${label})` : label,
    ...["requests", "refused", "prompt_tokens", "generated_tokens"].map((count) => number(use[count])),
  ]);
  const shown = rows.length ? grid(t("useByDay"), heads, rows) : classed("p", "quiet", t("noData"));
  $("use-table").replaceChildren(shown);
}

/** The sums of all keys by day; days without requests lie on the axis. */
function line(word, data, count) {
  const today = Math.floor(Date.now() / 1000 / DAY);
  const sums = new Map();
  for (const use of data) {
    const ago = Date.parse(use.day) / 1000 / DAY - today;
    sums.set(ago, (sums.get(ago) ?? 0) + use[count]);
  }
  const first = Math.min(...sums.keys());
  const days = sums.size ? Array.from({ length: 1 - first }, (_, at) => first + at) : [];
  return { name: t(word), points: days.map((day) => [day, sums.get(day) ?? 0]) };
}
