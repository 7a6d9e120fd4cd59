/** One answer: asking for it, waiting while the server is busy, collecting, measuring. No page. */

import { ApiError, streamChat } from "../shared/api.js";
import { preferences } from "../shared/storage.js";

/** @typedef {import("./store.js").Conversation} Conversation */
/** @typedef {import("./store.js").Message} Message */
/** @typedef {{tokens: number, exact: boolean, promptTokens: ?number, first: ?number,
 *   rate: ?number, thought: ?number}} Stats counts in tokens, `first` and `thought` in seconds,
 *   `rate` in tokens per second */
/** @typedef {{message: Message, stop: () => void, now: () => void, finished: Promise<void>}} Run
 *   `now` ends the waiting for a busy server */

/** A server that is busy is asked again so often, and never waited for longer than this. */
const MOST_TRIES = 20;
const LONGEST_WAIT = 300;

/**
 * The body of a chat completion for what was said so far. A preference left empty is left out, so
 * that the model's own default holds.
 * @param {string} system system prompt, or ""
 * @param {Message[]} messages
 * @returns {object}
 */
export function requestBody(system, messages) {
  const said = messages.map(asSent).filter(({ content }) => content);
  const body = {
    model: preferences.model,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...said],
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
 * A message in the API's shape, its files before its text.
 * @param {Message} message
 * @returns {{role: string, content: string}}
 */
export function asSent({ role, content, files = [] }) {
  const parts = files.map(({ name, text }) => `${name}:\n${fenced(text)}`);
  const said = role === "assistant" ? splitThoughts({ content }).answer : content;
  return { role, content: [...parts, said].filter(Boolean).join("\n\n") };
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

/** With a fence longer than any within. */
function fenced(text) {
  const longest = Math.max(2, ...(text.match(/`{3,}/g) ?? []).map(({ length }) => length));
  const fence = "`".repeat(longest + 1);
  return `${fence}\n${text.replace(/\n$/, "")}\n${fence}`;
}

/**
 * Ask for an answer; it grows in `message`, after what is there already.
 * @param {object} body see {@link requestBody}
 * @param {Message} message
 * @param {string} key API key, or ""
 * @param {(message: Message) => void} changed called after every change of the message
 * @returns {Run}
 */
export function startAnswer(body, message, key, changed) {
  const abort = new AbortController();
  const run = { message, stop: () => abort.abort(), now: () => {} };
  run.finished = insist(run, () => streamChat(body, key, abort.signal), abort.signal, changed);
  return run;
}

async function insist(run, ask, signal, changed) {
  const { message } = run;
  for (let tries = 0; ; tries += 1) {
    const clock = newClock();
    try {
      await collect(ask(), message, clock, changed);
      return;
    } catch (error) {
      if (error.name === "AbortError") {
        message.note = "stopped";
        return;
      }
      if (!(error instanceof ApiError)) throw error;
      if (clock.last !== null || !isBusy(error) || tries >= MOST_TRIES) {
        message.error = error.toJSON();
        return;
      }
      await countDown(run, error.retryAfter ?? Math.min(2 ** tries, 30), signal, changed);
    }
  }
}

function isBusy({ status, retryAfter }) {
  return [429, 503].includes(status) && (retryAfter ?? 0) <= LONGEST_WAIT;
}

/** Wait, the seconds left in `message.waiting`, until they are over, `run.now()` or the signal. */
async function countDown(run, seconds, signal, changed) {
  const until = performance.now() + seconds * 1000;
  let hurried = false;
  while (!hurried && !signal.aborted) {
    const left = until - performance.now();
    if (left <= 0) break;
    run.message.waiting = Math.ceil(left / 1000);
    changed(run.message);
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, Math.min(left, 1000));
      run.now = () => {
        hurried = true;
        clearTimeout(timer);
        resolve();
      };
      signal.addEventListener("abort", run.now, { once: true });
    });
  }
  delete run.message.waiting;
  changed(run.message);
}

function newClock() {
  const begun = performance.now();
  return { begun, first: null, last: null, thinking: null, answering: null, pieces: 0, usage: null };
}

async function collect(chunks, message, clock, changed) {
  for await (const chunk of chunks) {
    clock.usage = chunk.usage ?? clock.usage;
    if (chunk.id) message.completion = chunk.id;
    if (chunk.choices.length) take(chunk.choices[0], message, clock);
    message.stats = measure(clock, message.stats);
    changed(message);
  }
}

function take(choice, message, clock) {
  const { content, reasoning_content: reasoning } = choice.delta;
  if (content || reasoning) {
    clock.last = performance.now();
    clock.first ??= clock.last;
    clock.pieces += 1;
  }
  if (reasoning) {
    clock.thinking ??= clock.last;
    message.reasoning = (message.reasoning ?? "") + reasoning;
  }
  if (content) {
    clock.answering ??= clock.last;
    message.content += content;
  }
  if (choice.finish_reason === "length") message.note = "cutShort";
}

/** @returns {Stats} counted by pieces until the server's own count arrives at the end */
function measure({ begun, first, last, thinking, answering, pieces, usage }, before) {
  const tokens = usage?.completion_tokens ?? pieces;
  const thought = thinking === null ? null : ((answering ?? last) - thinking) / 1000;
  return {
    tokens,
    exact: usage !== null,
    promptTokens: usage?.prompt_tokens ?? null,
    first: first === null ? null : (first - begun) / 1000,
    rate: last > first && tokens > 1 ? ((tokens - 1) / (last - first)) * 1000 : null,
    thought: thought ?? before?.thought ?? null,
  };
}
