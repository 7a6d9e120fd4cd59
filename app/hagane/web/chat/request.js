/** What is sent: a conversation in the API's shape. No page. */

import { preferences } from "../shared/storage.js";

/** @typedef {import("./store.js").Message} Message */
/** @typedef {import("./store.js").Step} Step */

/**
 * The body of a chat completion for what was said so far. A preference left empty is left out, so
 * that the model's own default holds.
 * @param {string} system system prompt, or ""
 * @param {Message[]} messages
 * @param {object} [changes] fields of the body
 * @returns {object}
 */
export function requestBody(system, messages, changes = {}) {
  const body = {
    model: preferences.model,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages.flatMap(asSent)],
    temperature: preferences.temperature,
    top_p: preferences.topP,
    top_k: preferences.topK,
    min_p: preferences.minP,
    repetition_penalty: preferences.repetitionPenalty,
    max_completion_tokens: preferences.maxTokens,
    seed: preferences.seed,
    ...changes,
  };
  return Object.fromEntries(Object.entries(body).filter(([, value]) => value !== null));
}

/**
 * A message in the API's shape: first the tools that it called, each with its result.
 * @param {Message} message
 * @returns {object[]} none for one that says nothing
 */
export function asSent(message) {
  const content = spoken(message);
  const { role, steps = [] } = message;
  return [...steps.flatMap(stepSent), ...(content ? [{ role, content }] : [])];
}

/**
 * The text of a message as the model reads it: its files before its text, without thoughts.
 * @param {Message} message
 * @returns {string}
 */
export function spoken({ role, content, files = [] }) {
  const parts = files.map(({ name, text }) => `${name}:\n${fenced(text)}`);
  const said = role === "assistant" ? splitThoughts({ content }).answer : content;
  return [...parts, said].filter(Boolean).join("\n\n");
}

/**
 * A turn in which the model called tools, and what they returned.
 * @param {Step} step
 * @returns {object[]}
 */
export function stepSent({ content, calls }) {
  const made = calls.map(({ id, name, arguments: given }) => (
    { id, type: "function", function: { name, arguments: given } }));
  const results = calls.map(({ id, result }) => (
    { role: "tool", tool_call_id: id, content: result ?? "" }));
  return [{ role: "assistant", content: splitThoughts({ content }).answer, tool_calls: made }, ...results];
}

/**
 * What a model thought, and what it answered. Some write their thoughts into the answer.
 * @param {{content: string, reasoning?: string}} message
 * @returns {{reasoning: string, answer: string}}
 */
export function splitThoughts({ content, reasoning = "" }) {
  const found = /^\s*<think>([^]*?)(?:<\/think>\s*([^]*)|$)/.exec(content);
  if (!found) return { reasoning, answer: content };
  return { reasoning: reasoning + found[1].trim(), answer: found[2] ?? "" };
}

/**
 * A block of code, with a fence longer than any within.
 * @param {string} text
 * @returns {string} Markdown
 */
export function fenced(text) {
  const longest = Math.max(2, ...(text.match(/`{3,}/g) ?? []).map(({ length }) => length));
  const fence = "`".repeat(longest + 1);
  return `${fence}\n${text.replace(/\n$/, "")}\n${fence}`;
}
