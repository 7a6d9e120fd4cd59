/**
 * The conversations, kept in the browser until deleted.
 *
 * Every message has an entry of its own, and names the one it follows: tabs that write in one
 * conversation add to it and overwrite nothing. What follows the same message are branches.
 *
 * @typedef {{id: string, parent: ?string, role: "user" | "assistant", content: string, at: number,
 *   reasoning?: string, model?: string, files?: {name: string, text: string}[], stats?: object,
 *   note?: string, error?: object, completion?: string, thumbs?: "up" | "down", writing?: number, pair?: string,
 *   kept?: number,
 *   steps?: Step[], calls?: Call[]}} Message
 *   `at`, `kept` (last changed) and `writing` in milliseconds since 1970; `writing`: when a tab last said that it writes it;
 *   `steps`: turns in which tools were called before `content`; `calls`: those being made now;
 *   `pair`: what it shares with the answer that it is compared with
 * @typedef {{id: string, name: string, arguments: string, result?: string, failed?: boolean}} Call
 *   `arguments` is JSON as the model wrote it
 * @typedef {{content: string, reasoning?: string, calls: Call[]}} Step
 * @typedef {{id: string, title: string, begins: string, updated: number, system: string,
 *   leaf: ?string, edited?: number, tools?: string[]}} Entry what the list shows; `edited`: when title or system were; `tools`: names of those that this browser lets it use; `leaf` is the last message of the chosen branch
 * @typedef {Entry & {messages: Map<string, Message>}} Conversation
 */

import { read, write } from "../shared/storage.js";

const CONVERSATION = "hagane.conversation.";
const MESSAGE = "hagane.message.";
const LONGEST_NAME = 40;

/** @returns {string} an id; randomUUID() would need a secure page, which a LAN's server has not */
export function newId() {
  const parts = crypto.getRandomValues(new Uint32Array(3));
  return Array.from(parts, (part) => part.toString(36)).join("");
}

/**
 * A conversation with nothing said yet; it is kept from its first message on.
 * @param {string} system system prompt, or ""
 * @returns {Conversation}
 */
export function newConversation(system) {
  const messages = new Map();
  return { id: newId(), title: "", begins: "", updated: Date.now(), system, leaf: null, messages };
}

/** @returns {Entry[]} latest first */
export function listConversations() {
  return Object.keys(localStorage)
    .filter((key) => key.startsWith(CONVERSATION))
    .map(read)
    .filter((found) => found?.id)
    .sort((a, b) => b.updated - a.updated);
}

/**
 * @param {?string} id
 * @returns {?Conversation} with all of its messages; null when there is none
 */
export function openConversation(id) {
  const entry = id && read(CONVERSATION + id);
  if (!entry) return null;
  if (entry.messages) return upgraded(entry);
  const messages = new Map(messagesOf(id).map((message) => [message.id, message]));
  return { ...entry, messages };
}

function messagesOf(id) {
  const prefix = `${MESSAGE}${id}.`;
  const keys = Object.keys(localStorage).filter((key) => key.startsWith(prefix));
  return keys.map(read).filter((found) => found?.id);
}

/** A conversation of the time when all messages were one entry. */
function upgraded({ id, title, updated, system, messages }) {
  const conversation = { ...newConversation(system), id, title, updated };
  for (const { id: completion, ...message } of messages) {
    addMessage(conversation, { ...message, ...(completion && { completion }) });
  }
  localStorage.removeItem(CONVERSATION + id);
  keepAll(conversation);
  return conversation;
}

/**
 * Add a message to the end of the chosen branch, or below another.
 * @param {Conversation} conversation
 * @param {Partial<Message>} message
 * @param {?string} parent id of the message it follows
 * @returns {Message}
 */
export function addMessage(conversation, message, parent = conversation.leaf) {
  const added = { id: newId(), parent, at: Date.now(), ...message };
  conversation.messages.set(added.id, added);
  conversation.leaf = added.id;
  // By code points: a name never ends in half an emoji.
  const begins = added.content.trim().replace(/\s+/g, " ");
  conversation.begins ||= Array.from(begins).slice(0, LONGEST_NAME).join("");
  return added;
}

/**
 * Change what the list knows of a conversation; another tab's other changes stay.
 * @param {Conversation} conversation
 * @param {Partial<Entry>} changes
 * @returns {boolean} false when the browser's storage is full
 */
export function change(conversation, changes) {
  if ("title" in changes || "system" in changes) changes = { ...changes, edited: Date.now() };
  Object.assign(conversation, changes);
  if (!conversation.messages.size) return true;
  const { messages, ...entry } = conversation;
  const stored = read(CONVERSATION + conversation.id) ?? entry;
  return write(CONVERSATION + conversation.id, { ...stored, ...changes });
}

/**
 * Keep a message, unless its conversation was deleted meanwhile.
 * @param {Conversation} conversation
 * @param {Message} message
 * @returns {boolean} false when the browser's storage is full
 */
export function keepMessage(conversation, message) {
  if (localStorage.getItem(CONVERSATION + conversation.id) === null) return true;
  message.kept = Date.now();
  return put(conversation.id, message);
}

function put(id, { waiting, ...kept }) {
  return write(`${MESSAGE}${id}.${kept.id}`, kept);
}

/**
 * Keep a conversation and all of its messages.
 * @param {Conversation} conversation
 * @returns {boolean} false when the browser's storage is full
 */
export function keepAll(conversation) {
  const kept = change(conversation, {});
  return kept && [...conversation.messages.values()].every((one) => put(conversation.id, one));
}

/**
 * Keep what another browser did to a conversation: messages that are new, or newer than here. A new
 * conversation is kept wholly or not at all.
 * @param {Conversation} remote
 * @returns {{came: Message[], whole: boolean}} `came`: those that are kept now; `whole` is false when
 *   the browser's storage is full and something is not
 */
export function absorb(remote) {
  const local = openConversation(remote.id);
  if (!local) {
    const whole = keepAll(remote);
    if (!whole) deleteConversation(remote.id);
    return { came: whole ? [...remote.messages.values()] : [], whole };
  }
  const isNewer = ({ id, kept = 0 }) => kept > (local.messages.get(id)?.kept ?? -1);
  const newer = [...remote.messages.values()].filter(isNewer);
  const came = newer.filter((message) => put(remote.id, message));
  const { title, system, edited = 0 } = (remote.edited ?? 0) >= (local.edited ?? 0) ? remote : local;
  const entry = { ...read(CONVERSATION + remote.id), title, system, edited };
  const listed = write(CONVERSATION + remote.id, { ...entry, updated: Math.max(local.updated, remote.updated) });
  return { came, whole: listed && came.length === newer.length };
}

/** @param {string} id */
export function deleteConversation(id) {
  localStorage.removeItem(CONVERSATION + id);
  for (const message of messagesOf(id)) localStorage.removeItem(`${MESSAGE}${id}.${message.id}`);
}

/**
 * Hear of what other tabs change.
 * @param {(id: string, entry: ?Entry) => void} listed a conversation changed; null: it was deleted
 * @param {(id: string, message: Message) => void} said a message came or changed
 */
export function onOtherTabs(listed, said) {
  addEventListener("storage", ({ key, newValue }) => {
    if (key?.startsWith(CONVERSATION)) {
      listed(key.slice(CONVERSATION.length), newValue && JSON.parse(newValue));
    } else if (key?.startsWith(MESSAGE) && newValue) {
      said(key.slice(MESSAGE.length).split(".")[0], JSON.parse(newValue));
    }
  });
}

/**
 * The conversations that contain `text`, in a title or a message, whatever its case and width.
 * @param {string} text
 * @returns {Set<string>} their ids
 */
export function search(text) {
  const plain = (one) => (one ?? "").normalize("NFKC").toLowerCase();
  const wanted = plain(text);
  const found = listConversations().filter(({ title }) => plain(title).includes(wanted));
  const ids = new Set(found.map(({ id }) => id));
  for (const key of Object.keys(localStorage)) {
    if (!key.startsWith(MESSAGE)) continue;
    const id = key.slice(MESSAGE.length).split(".")[0];
    if (!ids.has(id) && plain(read(key)?.content).includes(wanted)) ids.add(id);
  }
  return ids;
}

/**
 * A conversation's name: the user's, else the beginning of the first message, else "".
 * @param {Entry} conversation
 * @returns {string}
 */
export function nameOf({ title, begins }) {
  return title || begins || "";
}
