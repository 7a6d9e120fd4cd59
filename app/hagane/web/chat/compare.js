/** Two answers side by side, until one of them is preferred or the conversation goes on. */

import { preferences } from "../shared/storage.js";
import { newId } from "./store.js";
import { siblings } from "./tree.js";

/** @typedef {import("./store.js").Conversation} Conversation */
/** @typedef {import("./store.js").Message} Message */

/**
 * The answers to begin: one, or two that belong together.
 * @returns {Partial<Message>[]}
 */
export function newAnswers() {
  const { model, second } = preferences;
  const answer = { role: "assistant", content: "", model };
  if (!second) return [answer];
  const [pair, at] = [newId(), Date.now()];
  return [{ ...answer, pair, at }, { ...answer, pair, at: at + 1, model: second }];
}

/**
 * The answers that stand side by side where `message` is the last one shown.
 * @param {Conversation} conversation
 * @param {?Message} message
 * @returns {Message[]} two, or none
 */
export function pairOf(conversation, message) {
  if (!message?.pair) return [];
  const both = siblings(conversation, message).filter(({ pair }) => pair === message.pair);
  return both.length === 2 ? both : [];
}
