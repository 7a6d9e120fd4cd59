/** The last lines of the server's and its engines' log, as they come, through a filter. */

import { classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { request } from "./client.js";
import { addFields } from "./fields.js";
import { number } from "./list.js";
import { attempt, poll } from "./notice.js";

const $ = (id) => document.getElementById(id);
const SECONDS = 2;
const SHOWN = 500;
const LEVELS = ["debug", "info", "warning", "error"];
/** Seconds back, by the key of each choice. */
const SINCE = new Map([["everything", 0], ["lastMinutes", 300], ["lastHour", 3600], ["lastDay", 86_400]]);

/** @returns {() => void} */
export function openLogs() {
  addFields($("log-fields"), [
    ["level", "leastLevel", { "data-help": "leastLevelHelp" }, LEVELS],
    ["text", "contains", { "data-help": "containsHelp", maxlength: "200" }],
    ["since", "since", { "data-help": "sinceHelp" }, [...SINCE.keys()]],
  ]);
  const form = $("log-form");
  const { elements } = form;
  if (!form.dataset.ready) elements.level.value = "info";
  form.dataset.ready = "yes";
  let filter = filterOf(elements);
  let last = 0;
  $("log-list").replaceChildren();
  const refresh = async () => {
    const asked = filter;
    const { data } = await request(`admin/logs?${new URLSearchParams({ ...asked, after: last, limit: SHOWN })}`);
    // Another filter was chosen meanwhile.
    if (asked !== filter) return;
    last = data.at(-1)?.id ?? last;
    append(data);
  };
  form.onsubmit = (event) => event.preventDefault();
  form.oninput = () => {
    [filter, last] = [filterOf(elements), 0];
    $("log-list").replaceChildren();
    attempt(refresh);
  };
  return poll(SECONDS, refresh);
}

function filterOf({ level, text, since }) {
  const back = SINCE.get(since.value);
  return { level: level.value, text: text.value.trim(), since: back ? Date.now() / 1000 - back : 0 };
}

function append(lines) {
  const list = $("log-list");
  const follows = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  list.append(...lines.map(row));
  while (list.childElementCount > SHOWN) list.firstChild.remove();
  if (follows) list.scrollTop = list.scrollHeight;
  $("log-count").textContent = t("linesShown", { count: number(list.childElementCount) });
}

function row({ created_at: created, level, logger, message, request_id: id, process }) {
  const date = new Date(created * 1000);
  const time = element("time", date.toLocaleTimeString(document.documentElement.lang));
  time.dateTime = date.toISOString();
  const from = [process, logger, id].filter(Boolean).join(" · ");
  // Others are shown as the server calls them.
  const word = LEVELS.includes(level) ? t(level) : level;
  return classed("p", level, time, ` ${word} `, classed("span", "quiet", from), `\n${message}`);
}
