/** The log of messages: what a conversation looks like while and after it is written. */

import { fillArticle, growArticle, newArticle } from "./message.js";

/** @typedef {import("./store.js").Message} Message */

/** Nearer to the end than this, in pixels, the log follows what is being written. */
const NEAR = 80;

/** Shows the chosen branch of one conversation at a time. */
export class MessageLog {
  /**
   * @param {HTMLElement} log
   * @param {import("./message.js").Actions} actions
   */
  constructor(log, actions) {
    this.log = log;
    this.actions = actions;
    /** @type {Map<Message, HTMLElement>} */
    this.articles = new Map();
    this.dirty = new Set();
  }

  /**
   * Show `messages`. Articles of messages already there stay in place, so that screen readers
   * announce the new ones only.
   * @param {Message[]} messages
   * @param {(message: Message) => import("./message.js").Place} placeOf
   */
  show(messages, placeOf) {
    const kept = new Set(messages);
    for (const [message, article] of this.articles) {
      if (kept.has(message)) continue;
      article.remove();
      this.articles.delete(message);
    }
    const places = messages.map(placeOf);
    this.log.classList.toggle("comparing", places.some(({ pair }) => pair));
    this.log.setAttribute("aria-busy", String(places.some(({ busy }) => busy)));
    let follows = this.#follows();
    messages.forEach((message, index) => {
      if (!this.articles.has(message)) {
        const article = newArticle(message);
        this.articles.set(message, article);
        this.log.append(article);
        follows = true;
      }
      fillArticle(this.articles.get(message), message, places[index], this.actions);
    });
    if (follows) this.log.scrollTop = this.log.scrollHeight;
  }

  #follows() {
    const { log } = this;
    return log.scrollHeight - log.scrollTop - log.clientHeight < NEAR;
  }

  /**
   * Put the focus back on a button that was made anew, or on the first that can be pressed.
   * @param {Message} message
   * @param {string} name the button's class
   */
  focus(message, name) {
    const actions = this.articles.get(message)?.querySelector(".actions");
    (actions?.querySelector(`.${name}:enabled`) ?? actions?.querySelector("button:enabled"))?.focus();
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
      if (article) growArticle(article, message);
    }
    this.dirty.clear();
    if (follows) this.log.scrollTop = this.log.scrollHeight;
  }
}
