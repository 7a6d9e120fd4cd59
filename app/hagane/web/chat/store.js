/**
 * The conversations, kept in the browser until deleted.
 *
 * Every conversation has an entry of its own, so two tabs do not overwrite each other's.
 *
 * @typedef {{role: "user" | "assistant", content: string, model?: string, stats?: object,
 *   note?: string, error?: object, id?: string, thumbs?: "up" | "down"}} Message
 * @typedef {{id: string, title: string, updated: number, system: string,
 *   messages: Message[]}} Conversation
 */

import { read, write } from "../shared/storage.js";

const CONVERSATION = "hagane.conversation.";

/**
 * A conversation with nothing said yet; it is saved with its first message.
 * @param {string} system system prompt, or ""
 * @returns {Conversation}
 */
export function newConversation(system) {
  // randomUUID() would need a secure page, and a server in the next room has none.
  const parts = crypto.getRandomValues(new Uint32Array(3));
  const id = Array.from(parts, (part) => part.toString(36)).join("");
  return { id, title: "", updated: Date.now(), system, messages: [] };
}

/** @returns {Conversation[]} latest first */
export function listConversations() {
  return Object.keys(localStorage)
    .filter((key) => key.startsWith(CONVERSATION))
    .map(read)
    .filter((found) => found && Array.isArray(found.messages))
    .sort((a, b) => b.updated - a.updated);
}

/**
 * Keep a conversation; one without messages is not worth keeping.
 * @param {Conversation} conversation
 * @returns {boolean} false when the browser's storage is full
 */
export function saveConversation(conversation) {
  return !conversation.messages.length || write(CONVERSATION + conversation.id, conversation);
}

/** @param {string} id */
export function deleteConversation(id) {
  localStorage.removeItem(CONVERSATION + id);
}

/**
 * A conversation's name: the user's, else the beginning of the first message, else "".
 * @param {Conversation} conversation
 * @returns {string}
 */
export function nameOf(conversation) {
  const first = conversation.messages[0]?.content.trim().replace(/\s+/g, " ") ?? "";
  // By code points: a title never ends in half an emoji.
  return conversation.title || Array.from(first).slice(0, 40).join("");
}

/**
 * The conversation in the shape that the API and fine-tuning files use, ready to be read by people.
 * @param {Conversation} conversation
 * @returns {string} JSON
 */
export function exported(conversation) {
  const system = conversation.system ? [{ role: "system", content: conversation.system }] : [];
  const messages = conversation.messages.map(({ role, content }) => ({ role, content }));
  const updated = new Date(conversation.updated).toISOString();
  const file = { title: nameOf(conversation), updated, messages: [...system, ...messages] };
  return JSON.stringify(file, null, 2);
}
