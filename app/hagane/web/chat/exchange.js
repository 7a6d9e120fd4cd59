/** Conversations as files. */

import { asSent } from "./answer.js";
import { nameOf } from "./store.js";
import { branch } from "./tree.js";

/**
 * The chosen branch in the shape that the API and fine-tuning files use, ready to be read by people.
 * @param {import("./store.js").Conversation} conversation
 * @returns {string} JSON
 */
export function exported(conversation) {
  const system = conversation.system ? [{ role: "system", content: conversation.system }] : [];
  const updated = new Date(conversation.updated).toISOString();
  const messages = [...system, ...branch(conversation).map(asSent)];
  return JSON.stringify({ title: nameOf(conversation), updated, messages }, null, 2);
}
