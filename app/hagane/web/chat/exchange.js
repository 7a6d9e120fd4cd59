/** Conversations as files: written, and read again. */

import { t } from "../shared/i18n.js";
import { asSent, fenced, spoken, splitThoughts } from "./request.js";
import * as store from "./store.js";
import { branch } from "./tree.js";

/** @typedef {import("./store.js").Conversation} Conversation */

/**
 * The chosen branch in the shape that the API and fine-tuning files use, ready to be read by people.
 * @param {Conversation} conversation
 * @returns {string} JSON
 */
export function exported(conversation) {
  const system = conversation.system ? [{ role: "system", content: conversation.system }] : [];
  const updated = new Date(conversation.updated).toISOString();
  const messages = [...system, ...branch(conversation).flatMap(asSent)];
  return JSON.stringify({ title: store.nameOf(conversation), updated, messages }, null, 2);
}

/**
 * The chosen branch as a document.
 * @param {Conversation} conversation
 * @returns {string} Markdown
 */
export function asMarkdown(conversation) {
  const parts = branch(conversation).map((message) => {
    const name = message.role === "user" ? t("you") : message.model ?? t("assistant");
    const said = spoken({ ...message, content: splitThoughts(message).answer });
    return [`## ${name}`, ...(message.steps ?? []).flatMap(stepParts), said].filter(Boolean).join("\n\n");
  });
  return [`# ${store.nameOf(conversation) || t("untitled")}`, ...parts].join("\n\n") + "\n";
}

function stepParts({ content, calls }) {
  const made = calls.map(({ name, arguments: given, result }) => (
    `> ${name} ${given.replace(/\s+/g, " ")}\n\n${fenced(result ?? "")}`));
  return [splitThoughts({ content }).answer, ...made];
}

/** @returns {string} JSON of every conversation with all of its branches */
export function backup() {
  const conversations = store.listConversations().map(({ id }) => {
    const { messages, ...entry } = store.openConversation(id);
    return { ...entry, messages: [...messages.values()] };
  });
  return JSON.stringify({ hagane: 1, conversations }, null, 1);
}

/**
 * The conversations of a file: a backup, an exported one, or lines of a fine-tuning file.
 * @param {string} text
 * @returns {Conversation[]}
 * @throws {SyntaxError} for what is none of these
 */
export function imported(text) {
  const found = parsed(text).flatMap((one) => one?.conversations ?? [one]);
  const conversations = found.map((one) => (one.id ? restored(one) : told(one)));
  if (!conversations.length) throw new SyntaxError("no conversations");
  return conversations;
}

/** One value, or one in each line. */
function parsed(text) {
  try {
    return [JSON.parse(text)].flat();
  } catch {
    return text.split("\n").filter((line) => line.trim()).map((line) => JSON.parse(line));
  }
}

/** Of a backup: what there is of it already stays. */
function restored({ id, title, begins, updated, system, leaf, messages }) {
  const entry = { id, title, begins, updated, leaf };
  if (![id, title, begins].every((one) => typeof one === "string")) throw new SyntaxError("no entry");
  const known = store.openConversation(id) ?? { ...entry, system: text(system), messages: new Map() };
  for (const message of messages) {
    if (typeof message.id !== "string" || known.messages.has(message.id)) continue;
    known.messages.set(message.id, cleaned(message));
  }
  return known;
}

/** In the API's shape. */
function told({ title, messages }) {
  if (!Array.isArray(messages)) throw new SyntaxError("no messages");
  const system = messages.find(({ role }) => ["system", "developer"].includes(role));
  const conversation = store.newConversation(text(system?.content));
  conversation.title = text(title);
  let steps = [];
  for (const { role, content, tool_calls: calls, tool_call_id: id } of messages) {
    if (calls?.length) steps.push({ content: text(content), calls: calls.map(toldCall) });
    else if (role === "tool") (steps.at(-1)?.calls.find((call) => call.id === id) ?? {}).result = text(content);
    else if (["user", "assistant"].includes(role)) {
      const before = role === "assistant" && steps.length && { steps };
      store.addMessage(conversation, { role, content: text(content), ...before });
      steps = [];
    }
  }
  if (!conversation.messages.size) throw new SyntaxError("nothing said");
  return conversation;
}

function toldCall({ id, function: called }) {
  return { id: text(id), name: text(called?.name), arguments: text(called?.arguments) };
}

function cleanedStep({ content, reasoning, calls }) {
  const kept = ({ id, name, arguments: given, result, failed }) => (
    { id: text(id), name: text(name), arguments: text(given), result: text(result), failed: failed === true });
  return { content: text(content), ...(reasoning && { reasoning: text(reasoning) }), calls: calls.map(kept) };
}

/** What a file says is shown, so it must be of the kinds that are. */
function cleaned({ id, parent, role, at, content, reasoning, model, files, steps }) {
  return {
    id,
    parent: text(parent) || null,
    role: role === "user" ? role : "assistant",
    at: Number(at) || 0,
    content: text(content),
    ...(reasoning && { reasoning: text(reasoning) }),
    ...(model && { model: text(model) }),
    ...(steps && { steps: steps.map(cleanedStep) }),
    ...(files && { files: files.map((file) => ({ name: text(file.name), text: text(file.text) })) }),
  };
}

function text(value) {
  return typeof value === "string" ? value : "";
}
