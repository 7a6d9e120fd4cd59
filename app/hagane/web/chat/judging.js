/** What the user thinks of answers: thumbs, and the better of two. */

import { ApiError, sendFeedback } from "../shared/api.js";
import { t } from "../shared/i18n.js";
import { loadKey } from "../shared/keys.js";
import { pairOf } from "./compare.js";
import { explain } from "./errors.js";
import * as store from "./store.js";

/** @typedef {import("./store.js").Message} Message */

/** Sends judgements of answers and keeps them. */
export class Judging {
  /**
   * @param {{current: () => import("./store.js").Conversation, kept: (done: boolean) => void,
   *   show: () => void, notice: (text: string) => void, log: import("./view.js").MessageLog}} page
   */
  constructor(page) {
    this.page = page;
  }

  /**
   * Send the thumbs of an answer; they stay pressed once the server has them.
   * @param {Message} message
   * @param {"up" | "down"} thumbs
   */
  async judge(message, thumbs) {
    const conversation = this.page.current();
    if (!(await this.#send(message, { thumbs }))) return;
    message.thumbs = thumbs;
    this.page.kept(store.keepMessage(conversation, message));
    if (!this.#settle(conversation)) return;
    this.page.log.focus(message, thumbs === "up" ? "good" : "bad");
  }

  /**
   * Go on with the better of two answers; the other one becomes a branch beside it.
   * @param {Message} message
   */
  async pick(message) {
    const { current, kept } = this.page;
    const conversation = current();
    const pair = pairOf(conversation, message);
    const other = pair.find((one) => one !== message);
    const compared = message.completion && other.completion && !message.error && !other.error;
    if (compared && !(await this.#send(message, { preferred_over: other.completion }))) return;
    for (const one of pair) {
      delete one.pair;
      kept(store.keepMessage(conversation, one));
    }
    kept(store.change(conversation, { leaf: message.id }));
    if (this.#settle(conversation)) document.getElementById("prompt").focus();
  }

  async #send(message, judgement) {
    try {
      await sendFeedback(message.completion, judgement, loadKey("key"));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.page.notice(explain(error));
      return false;
    }
    return true;
  }

  /** @returns {boolean} whether the conversation is still the one that is shown */
  #settle(conversation) {
    if (conversation !== this.page.current()) return false;
    this.page.show();
    document.getElementById("status").textContent = t("thanks");
    return true;
  }
}
