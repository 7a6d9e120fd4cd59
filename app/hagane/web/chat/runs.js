/** The answers that this tab is writing: begun, kept once a second, ended. */

import { startAnswer } from "./answer.js";
import * as store from "./store.js";

/** @typedef {import("./store.js").Conversation} Conversation */
/** @typedef {import("./store.js").Message} Message */

const HEARTBEAT = 1000;
/** A tab that has said nothing of an answer for so long writes it no more. */
const DEAD = 10_000;

/** The page is being left: what ends now was interrupted, whatever its connection says. */
let leaving = false;
/** Answers being written here, by their message. @type {Map<Message, object>} */
const runs = new Map();

/**
 * Have `message` written.
 * @param {Conversation} conversation
 * @param {Message} message
 * @param {object} body of the request
 * @param {string} key API key, or ""
 * @param {(message: Message) => void} changed after every change of the message
 * @param {(kept: boolean) => void} kept whether there was room, whenever it was kept
 * @returns {Promise<void>} fulfilled at the end, whatever it was
 */
export async function begin(conversation, message, body, key, changed, kept) {
  delete message.note;
  delete message.error;
  const started = startAnswer(body, message, key, changed);
  const keep = () => {
    message.writing = Date.now();
    kept(store.keepMessage(conversation, message));
  };
  runs.set(message, { ...started, conversation, now: () => started.now() });
  keep();
  const timer = setInterval(keep, HEARTBEAT);
  try {
    await started.finished;
  } finally {
    clearInterval(timer);
    runs.delete(message);
    delete message.writing;
    if (!leaving) kept(store.keepMessage(conversation, message));
  }
}

/**
 * What this tab is writing in a conversation.
 * @param {string} id of the conversation
 * @returns {{message: Message, conversation: Conversation, stop: () => void, now: () => void}[]}
 */
export function runsOf(id) {
  return [...runs.values()].filter(({ conversation }) => conversation.id === id);
}

/**
 * Whether this tab or another is writing a message just now.
 * @param {Message} message
 * @returns {boolean}
 */
export function isWritten(message) {
  return runs.has(message) || Date.now() - (message.writing ?? 0) < DEAD;
}

/**
 * Whether this tab writes a message.
 * @param {Message} message
 * @returns {boolean}
 */
export function isOwn(message) {
  return runs.has(message);
}

/** What was written so far survives the page's end in the middle of an answer. */
export function keepOnLeaving() {
  addEventListener("pageshow", () => (leaving = false));
  addEventListener("pagehide", () => {
    leaving = true;
    for (const { message, conversation } of runs.values()) {
      const { writing, ...left } = message;
      store.keepMessage(conversation, { ...left, note: "interrupted" });
    }
  });
}
