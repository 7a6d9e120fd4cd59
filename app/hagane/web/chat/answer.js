/** One answer: asking for it, collecting it, measuring it. No page in here. */

import { ApiError, streamChat } from "../shared/api.js";
import { preferences } from "../shared/storage.js";

/** @typedef {import("./store.js").Conversation} Conversation */
/** @typedef {import("./store.js").Message} Message */
/** @typedef {{tokens: number, exact: boolean, promptTokens: ?number, first: ?number,
 *   rate: ?number}} Stats counts in tokens, `first` in seconds, `rate` in tokens per second */

/**
 * The body of a chat completion for what was said so far. A preference left empty is left out, so
 * that the model's own default holds.
 * @param {Conversation} conversation
 * @returns {object}
 */
export function requestBody(conversation) {
  const system = conversation.system ? [{ role: "system", content: conversation.system }] : [];
  const said = conversation.messages.filter(({ content }) => content);
  const body = {
    model: preferences.model,
    messages: [...system, ...said.map(({ role, content }) => ({ role, content }))],
    temperature: preferences.temperature,
    top_p: preferences.topP,
    top_k: preferences.topK,
    min_p: preferences.minP,
    repetition_penalty: preferences.repetitionPenalty,
    max_completion_tokens: preferences.maxTokens,
    seed: preferences.seed,
  };
  return Object.fromEntries(Object.entries(body).filter(([, value]) => value !== null));
}

/**
 * Ask for an answer; it grows in a new last message of `conversation`.
 * @param {Conversation} conversation
 * @param {object} body see {@link requestBody}
 * @param {string} key API key, or ""
 * @param {(message: Message) => void} changed called after every change of the message
 * @returns {{message: Message, stop: () => void, finished: Promise<void>}}
 */
export function startAnswer(conversation, body, key, changed) {
  const abort = new AbortController();
  const message = { role: "assistant", content: "", model: body.model };
  conversation.messages.push(message);
  const chunks = streamChat(body, key, abort.signal);
  return { message, stop: () => abort.abort(), finished: collect(chunks, message, changed) };
}

async function collect(chunks, message, changed) {
  const clock = { begun: performance.now(), first: null, last: null, pieces: 0, usage: null };
  try {
    for await (const chunk of chunks) {
      clock.usage = chunk.usage ?? clock.usage;
      message.id ??= chunk.id;
      if (chunk.choices.length) take(chunk.choices[0], message, clock);
      message.stats = measure(clock);
      changed(message);
    }
  } catch (error) {
    if (error.name === "AbortError") message.note = "stopped";
    else if (error instanceof ApiError) message.error = error.toJSON();
    else throw error;
  }
}

function take(choice, message, clock) {
  if (choice.delta.content) {
    clock.last = performance.now();
    clock.first ??= clock.last;
    clock.pieces += 1;
    message.content += choice.delta.content;
  }
  if (choice.finish_reason === "length") message.note = "cutShort";
}

/** @returns {Stats} counted by pieces until the server's own count arrives at the end */
function measure({ begun, first, last, pieces, usage }) {
  const tokens = usage?.completion_tokens ?? pieces;
  return {
    tokens,
    exact: usage !== null,
    promptTokens: usage?.prompt_tokens ?? null,
    first: first === null ? null : (first - begun) / 1000,
    rate: last > first && tokens > 1 ? ((tokens - 1) / (last - first)) * 1000 : null,
  };
}
