/** The log of messages: what a conversation looks like while and after it is written. */

import { copyText } from "../shared/clipboard.js";
import { button } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { fit, onEnter } from "./composer.js";
import { renderMarkdown } from "./markdown.js";

/** @typedef {import("./store.js").Message} Message */

/** Nearer to the end than this, in pixels, the log follows what is being written. */
const NEAR = 80;

/** Shows the messages of one conversation at a time. */
export class MessageLog {
  /**
   * @param {HTMLElement} log
   * @param {{retry: () => void, edit: (text: string) => void, key: () => void,
   *   judge: (message: Message, thumbs: "up" | "down") => void}} actions
   */
  constructor(log, actions) {
    this.log = log;
    this.actions = actions;
    /** @type {Map<Message, HTMLElement>} */
    this.articles = new Map();
    this.dirty = new Set();
    this.running = false;
  }

  /**
   * Show `messages`. Articles of messages already there stay in place, so that screen readers
   * announce the new ones only.
   * @param {Message[]} messages
   * @param {boolean} running whether the last one is still being written
   */
  show(messages, running) {
    this.running = running;
    const kept = new Set(messages);
    for (const [message, article] of this.articles) {
      if (kept.has(message)) continue;
      article.remove();
      this.articles.delete(message);
    }
    this.log.setAttribute("aria-busy", String(running));
    let follows = this.#follows();
    for (const message of messages) {
      if (!this.articles.has(message)) {
        this.#add(message);
        follows = true;
      }
      this.#fill(message, messages);
    }
    if (follows) this.log.scrollTop = this.log.scrollHeight;
  }

  #follows() {
    const { log } = this;
    return log.scrollHeight - log.scrollTop - log.clientHeight < NEAR;
  }

  /**
   * Put the focus back on a button that was made anew.
   * @param {Message} message
   * @param {string} name the button's class
   */
  focus(message, name) {
    this.articles.get(message)?.querySelector(`.actions .${name}`)?.focus();
  }

  /** Forget everything shown, as for another language. */
  clear() {
    this.articles.clear();
    this.log.replaceChildren();
  }

  /**
   * Show the new end of a message, once per frame however often it changes.
   * @param {Message} message
   */
  update(message) {
    if (!this.articles.has(message)) return;
    if (!this.dirty.size) requestAnimationFrame(() => this.#flush());
    this.dirty.add(message);
  }

  #flush() {
    const follows = this.#follows();
    for (const message of this.dirty) {
      const article = this.articles.get(message);
      if (!article) continue;
      renderMarkdown(article.querySelector(".text"), message.content);
      article.querySelector(".stats").textContent = statsText(message);
    }
    this.dirty.clear();
    if (follows) this.log.scrollTop = this.log.scrollHeight;
  }

  #add(message) {
    const article = document.createElement("article");
    article.className = `message ${message.role}`;
    const name = document.createElement("h2");
    name.textContent = t(message.role === "user" ? "you" : "assistant");
    const parts = ["text", "trouble", "stats", "actions"].map((part) => {
      const made = document.createElement("div");
      made.className = part;
      return made;
    });
    article.append(name, ...parts);
    this.articles.set(message, article);
    this.log.append(article);
  }

  #fill(message, messages) {
    const article = this.articles.get(message);
    const text = article.querySelector(".text");
    const last = message === messages.at(-1);
    if (message.role === "assistant") renderMarkdown(text, message.content);
    else if (!text.querySelector("textarea")) text.textContent = message.content;
    const writing = last && this.running;
    article.classList.toggle("writing", writing);
    article.querySelector(".stats").textContent = statsText(message);
    article.querySelector(".trouble").replaceChildren(...this.#trouble(message, last));
    const choices = writing ? [] : this.#choices(message, messages);
    article.querySelector(".actions").replaceChildren(...choices);
  }

  #choices(message, messages) {
    const copy = button("copy", () => copyText(message.content, copy));
    const found = message.content ? [copy] : [];
    if (this.running) return found;
    if (message.role === "assistant" && message.id) found.push(...this.#thumbs(message));
    const lastOfUser = messages.findLast(({ role }) => role === "user");
    if (message === lastOfUser) found.push(button("edit", () => this.#edit(message, messages)));
    if (message === messages.at(-1)) found.push(button("retry", this.actions.retry));
    return found;
  }

  #thumbs(message) {
    return ["up", "down"].map((thumbs) => {
      const name = thumbs === "up" ? "good" : "bad";
      const made = button(name, () => this.actions.judge(message, thumbs));
      made.setAttribute("aria-pressed", String(message.thumbs === thumbs));
      return made;
    });
  }

  #trouble(message, last) {
    const { error } = message;
    if (!error) return [];
    const lost = error.code === "connection_lost";
    const box = document.createElement("div");
    box.className = "error";
    if (last) box.setAttribute("role", "alert");
    const title = document.createElement("strong");
    title.textContent = t(lost ? "lostTitle" : "errorTitle");
    const text = document.createElement("p");
    text.textContent = lost ? t("lost") : error.message;
    box.append(title, text);
    const details = [
      error.status ? `HTTP ${error.status}` : "",
      lost ? "" : error.code,
      error.param,
      error.retryAfter ? t("wait", { seconds: error.retryAfter }) : "",
      error.requestId ? t("requestId", { id: error.requestId }) : "",
    ].filter(Boolean);
    if (details.length) {
      const line = document.createElement("p");
      line.className = "quiet";
      line.textContent = details.join(" · ");
      box.append(line);
    }
    if (error.status === 401) box.append(button("enterKey", this.actions.key));
    return [box];
  }

  #edit(message, messages) {
    const article = this.articles.get(message);
    const field = document.createElement("textarea");
    field.setAttribute("aria-label", t("editLabel"));
    field.value = message.content;
    const leave = () => {
      field.remove();
      this.#fill(message, messages);
      article.querySelector(".edit")?.focus();
    };
    const send = () => {
      const text = field.value.trim();
      if (text) this.actions.edit(text);
    };
    onEnter(field, send);
    field.addEventListener("input", () => fit(field));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.isComposing) leave();
    });
    article.querySelector(".text").replaceChildren(field);
    const choices = [button("saveAndSend", send), button("cancel", leave)];
    article.querySelector(".actions").replaceChildren(...choices);
    fit(field);
    field.focus();
  }
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
