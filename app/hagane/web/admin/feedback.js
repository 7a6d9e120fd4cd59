/** What people said of answers, and the answers they said it of. */

import { ask } from "../shared/dialogs.js";
import { breakable, button, classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { listAll, pathOf, request } from "./client.js";
import { actions, moment, number, showFacts, showList } from "./list.js";
import { announce, attempt, poll } from "./notice.js";
import { showMessages } from "./records.js";

const $ = (id) => document.getElementById(id);
const SECONDS = 10;
const SHOWN = 200;

let all = [];

/** @returns {() => void} */
export function openFeedback() {
  const form = $("feedback-form");
  form.onsubmit = (event) => event.preventDefault();
  form.oninput = show;
  return poll(SECONDS, refresh);
}

async function refresh() {
  all = await listAll("v1/feedback");
  show();
}

function show() {
  const count = (kind) => all.filter((one) => isOf(one, kind)).length;
  showFacts($("feedback-facts"), [
    [t("judgementsInAll"), all.length],
    [t("thumbsUp"), count("up")],
    [t("thumbsDown"), count("down")],
    [t("corrections"), count("correction")],
    [t("comments"), count("comment")],
  ]);
  const { kind, text } = $("feedback-form").elements;
  const found = all.filter((one) => isOf(one, kind.value)
    && `${one.model} ${one.alias ?? ""}`.includes(text.value.trim()));
  showList($("feedback-list"), found.slice(0, SHOWN), ({ id }) => id, row);
}

function isOf(one, kind) {
  return kind === "" || one.thumbs === kind || Boolean(one[kind]);
}

function row(given) {
  const { model, alias, arm, thumbs, score, correction, comment, tags, author } = given;
  const badges = [];
  if (thumbs) badges.push(badge(thumbs === "up"));
  if (score !== null) badges.push(" ", classed("span", "badge", `${t("score")} ${number(score, 2)}`));
  const about = [alias && `${alias} (${arm ? t(arm) : "–"})`, author, ...tags, given.completion_id].filter(Boolean);
  const made = classed("li", "card",
    element("h3", ...breakable(model), " ", ...badges),
    classed("p", "quiet", `${about.join(" · ")} · `, moment(given.updated_at)));
  if (comment) made.append(element("p", comment));
  if (correction) made.append(element("p", `${t("correction")}:`), classed("div", "said", correction));
  if (given.preferred_over) made.append(element("p", t("preferredOver", { id: given.preferred_over })));
  const tools = [
    button("showAnswer", () => reveal(given, made)),
    button("remove", () => remove(given)),
  ];
  made.append(actions(tools, given.completion_id));
  return made;
}

function badge(liked) {
  return classed("span", `badge ${liked ? "succeeded" : "failed"}`, t(liked ? "thumbsUp" : "thumbsDown"));
}

/** The conversation and its answer, where the server keeps it; once more hides them. */
async function reveal({ completion_id: id, choice }, card) {
  const shown = card.querySelector(".messages");
  if (shown) return shown.remove();
  await attempt(async () => {
    const path = pathOf("v1/chat/completions", id);
    const [completion, messages] = await Promise.all([request(path), request(`${path}/messages?limit=100`)]);
    card.append(showMessages([...messages.data, completion.choices[choice].message]));
  });
}

async function remove({ id, completion_id: name }) {
  if ((await ask(t("removeLabel", { name }), null, "remove")) === null) return;
  await attempt(async () => {
    await request(pathOf("v1/feedback", id), { method: "DELETE" });
    announce(t("changed"));
    await refresh();
  });
}
