/** One message of the log: what is in its article, and what can be done with it. */

import { copyText } from "../shared/clipboard.js";
import { button, classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { fit, onEnter } from "./composer.js";
import { details, explain } from "./errors.js";
import { renderMarkdown } from "./markdown.js";
import { splitThoughts } from "./request.js";
import { showSteps } from "./steps.js";

/** @typedef {import("./store.js").Message} Message */
/**
 * What the log is told beside the message itself.
 * @typedef {{last: boolean, busy: boolean, own: boolean, beside: Message[],
 *   pair: boolean}} Place `pair`: it stands beside another answer, and the better one can be chosen;
 *   `busy`: it is being written; `own`: by this tab; `beside`: itself and its branches, oldest first
 */
/**
 * @typedef {{retry: (message: Message) => void, resume: (message: Message) => void,
 *   edit: (message: Message, text: string) => void, key: () => void, now: () => void,
 *   stop: () => void, judge: (message: Message, thumbs: "up" | "down") => void,
 *   pick: (message: Message) => void,
 *   choose: (message: Message, word: "earlier" | "later") => void}} Actions
 */

const PARTS = ["files", "steps", "reasoning", "text", "trouble", "actions"];

/**
 * The article of a message, still empty.
 * @param {Message} message
 * @returns {HTMLElement}
 */
export function newArticle(message) {
  const made = classed("article", `message ${message.role}`, element("h2"));
  made.append(...PARTS.map((part) => classed("div", part)));
  return made;
}

/**
 * Bring all of an article up to date.
 * @param {HTMLElement} article
 * @param {Message} message
 * @param {Place} place
 * @param {Actions} actions
 */
export function fillArticle(article, message, place, actions) {
  // What is being edited is left alone.
  if (part(article, "text").querySelector("textarea")) return;
  const name = message.role === "user" ? t("you") : message.model ?? t("assistant");
  article.querySelector("h2").textContent = name;
  article.classList.toggle("writing", place.busy);
  article.classList.toggle("compared", place.pair);
  const files = (message.files ?? []).map((file) => classed("span", "file", file.name));
  part(article, "files").replaceChildren(...files);
  growArticle(article, message);
  part(article, "trouble").replaceChildren(...trouble(message, place, actions));
  const choices = place.busy ? [] : choicesOf(article, message, place, actions);
  part(article, "actions").replaceChildren(...choices, stats(message));
}

/**
 * Show the new end of a message that is being written.
 * @param {HTMLElement} article
 * @param {Message} message
 */
export function growArticle(article, message) {
  const text = part(article, "text");
  if (message.role === "user") text.textContent = message.content;
  else renderMarkdown(text, splitThoughts(message).answer);
  showSteps(part(article, "steps"), message, article.classList.contains("writing"));
  showReasoning(part(article, "reasoning"), message);
  const waiting = article.querySelector(".waiting p");
  if (waiting && message.waiting) waiting.textContent = t("busy", { seconds: message.waiting });
  const figures = article.querySelector(".stats");
  if (figures) figures.textContent = statsText(message);
}

function part(article, name) {
  return article.querySelector(`:scope > .${name}`);
}

function showReasoning(box, message) {
  const { reasoning, answer } = splitThoughts(message);
  if (!reasoning) {
    box.replaceChildren();
    return;
  }
  if (!box.firstChild) {
    const folded = element("details", element("summary"), classed("div", "text"));
    box.append(folded);
  }
  const seconds = message.stats?.thought;
  const known = answer && seconds ? t("thoughtFor", { seconds: seconds.toFixed(1) }) : null;
  box.querySelector("summary").textContent = known ?? t(answer ? "thoughts" : "thinking");
  renderMarkdown(box.querySelector(".text"), reasoning);
}

function stats(message) {
  return classed("span", "stats", statsText(message));
}

/**
 * "120 tokens · 35.2 tokens/s · …" of an answer; "" for what was not measured.
 * @param {Message} message
 * @returns {string}
 */
export function statsText({ stats, note }) {
  const parts = note ? [t(note)] : [];
  if (stats?.tokens) {
    const count = (stats.exact ? "" : "≈") + stats.tokens.toLocaleString();
    parts.push(t("tokens", { count }));
    if (stats.rate) parts.push(t("rate", { rate: stats.rate.toFixed(1) }));
    if (stats.first !== null) parts.push(t("firstToken", { seconds: stats.first.toFixed(2) }));
    if (stats.promptTokens) parts.push(t("promptTokens", { count: stats.promptTokens }));
  }
  return parts.join(" · ");
}

function choicesOf(article, message, place, actions) {
  const { answer } = splitThoughts(message);
  const copy = button("copy", () => copyText(answer, copy));
  const found = [...branches(message, place.beside, actions), ...(answer ? [copy] : [])];
  if (place.pair) found.unshift(button("better", () => actions.pick(message)));
  found.push(button("edit", () => edit(article, message, place, actions)));
  if (message.role === "user" && !place.last) return found;
  found.push(button("retry", () => actions.retry(message)));
  if (message.role === "user") return found;
  const unfinished = message.note || message.error;
  if (place.last && answer.trim() && unfinished) {
    found.push(button("resume", () => actions.resume(message)));
  }
  if (message.completion) found.push(...thumbs(message, actions));
  return found;
}

function branches(message, beside, actions) {
  if (beside.length < 2) return [];
  const at = beside.indexOf(message);
  const step = (word, sign, by) => {
    const made = button(word, () => actions.choose(beside[at + by], word));
    made.textContent = sign;
    made.setAttribute("aria-label", t(word));
    made.disabled = !beside[at + by];
    return made;
  };
  const count = classed("span", "count", `${at + 1}/${beside.length}`);
  return [step("earlier", "‹", -1), count, step("later", "›", 1)];
}

function thumbs(message, actions) {
  return ["up", "down"].map((direction) => {
    const made = button(direction === "up" ? "good" : "bad", () => actions.judge(message, direction));
    made.setAttribute("aria-pressed", String(message.thumbs === direction));
    return made;
  });
}

function trouble(message, place, actions) {
  if (message.waiting) {
    const text = element("p", t("busy", { seconds: message.waiting }));
    return [classed("div", "waiting", text, button("tryNow", actions.now), button("giveUp", actions.stop))];
  }
  const { error } = message;
  if (!error) return [];
  const box = classed("div", "error", element("strong", explain(error)));
  if (place.last) box.setAttribute("role", "alert");
  box.append(...details(error).map((line) => classed("p", "quiet", line)));
  if (error.status === 401) box.append(button("enterKey", actions.key));
  return [box];
}

function edit(article, message, place, actions) {
  const field = element("textarea");
  field.setAttribute("aria-label", t("editLabel"));
  field.value = message.content;
  const leave = () => {
    field.remove();
    fillArticle(article, message, place, actions);
    article.querySelector(".edit")?.focus();
  };
  const send = () => {
    const text = field.value.trim();
    if (text) actions.edit(message, text);
  };
  onEnter(field, send);
  field.addEventListener("input", () => fit(field));
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing) leave();
  });
  part(article, "text").replaceChildren(field);
  const done = button(message.role === "user" ? "saveAndSend" : "save", send);
  part(article, "actions").replaceChildren(done, button("cancel", leave));
  fit(field);
  field.focus();
}
