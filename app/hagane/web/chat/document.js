/**
 * A conversation as the document that the server keeps. Whoever has the key may have put anything
 * there by the routes: of what comes, the page takes what it can show, as it stands.
 */

/** @typedef {import("./store.js").Conversation} Conversation */
/** @typedef {import("./store.js").Message} Message */

/** The last moment that a date can be of, in milliseconds since 1970. */
const LATEST = 8.64e15;

const isText = (value) => typeof value === "string";
const isNumber = (value) => Number.isFinite(value);
const isTime = (value) => isNumber(value) && Math.abs(value) <= LATEST;
const isFlag = (value) => typeof value === "boolean";
const maybe = (test) => (value) => value === undefined || value === null || test(value);
const oneOf = (...values) => (value) => values.includes(value);
const listOf = (test) => (value) => Array.isArray(value) && value.every(test);
const shaped = (tests) => (value) => (
  value !== null && typeof value === "object" && Object.entries(tests).every(([name, test]) => test(value[name])));

const isCall = shaped({ id: isText, name: isText, arguments: isText, result: maybe(isText), failed: maybe(isFlag) });
const isStep = shaped({ content: isText, reasoning: maybe(isText), calls: listOf(isCall) });
const isStats = shaped({
  tokens: isNumber,
  exact: maybe(isFlag),
  promptTokens: maybe(isNumber),
  first: (value) => value === null || isNumber(value),
  rate: maybe(isNumber),
  thought: maybe(isNumber),
});
const isError = shaped({
  message: isText,
  code: maybe(isText),
  param: maybe(isText),
  status: isNumber,
  retryAfter: maybe(isNumber),
  requestId: maybe(isText),
});

const isMessage = shaped({ id: isText, role: oneOf("user", "assistant"), content: isText, at: isNumber });
/** What a message may have, and of which kind. `writing` is the affair of one browser's tabs. */
const FIELDS = new Map(Object.entries({
  id: isText,
  parent: maybe(isText),
  role: isText,
  content: isText,
  at: isNumber,
  kept: isNumber,
  reasoning: isText,
  model: isText,
  files: listOf(shaped({ name: isText, text: isText })),
  stats: isStats,
  note: oneOf("stopped", "cutShort", "interrupted", "tooManyCalls"),
  error: isError,
  completion: isText,
  thumbs: oneOf("up", "down"),
  pair: isText,
  steps: listOf(isStep),
  calls: listOf(isCall),
}));

/**
 * The document of a conversation, without the tools: each browser's user allows them. Its messages keep the order of their fields, which digests count on.
 * @param {Conversation} conversation
 * @returns {object}
 */
export function written({ messages, tools, ...entry }) {
  return { ...entry, messages: cleaned([...messages.values()]) };
}

/**
 * The conversation of a document, without messages and fields that are none.
 * @param {string} id
 * @param {any} document
 * @returns {Conversation} its `messages` may be empty
 */
export function received(id, document) {
  const { title, begins, updated, system, leaf, edited, messages } = document ?? {};
  const text = (value) => (isText(value) ? value : "");
  const time = (value) => (isTime(value) ? value : 0);
  const said = Array.isArray(messages) ? cleaned(messages) : [];
  return {
    id,
    title: text(title),
    begins: text(begins),
    updated: time(updated),
    system: text(system),
    leaf: text(leaf) || null,
    edited: time(edited),
    messages: new Map(said.map((message) => [message.id, message])),
  };
}

/** @returns {Message[]} */
function cleaned(messages) {
  const isField = ([name, value]) => FIELDS.get(name)?.(value);
  return messages.filter(isMessage).map((message) => Object.fromEntries(Object.entries(message).filter(isField)));
}
