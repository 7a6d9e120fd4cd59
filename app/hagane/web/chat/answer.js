/**
 * One answer: asking for it, waiting while the server is busy, collecting, running the tools that it
 * calls, measuring. No page.
 */

import { ApiError, streamChat } from "../shared/api.js";
import { stepSent } from "./request.js";
import { runTool } from "./tools.js";

/** @typedef {import("./store.js").Message} Message */
/** @typedef {{tokens: number, exact: boolean, promptTokens: ?number, first: ?number,
 *   rate: ?number, thought: ?number}} Stats counts in tokens, `first` and `thought` in seconds,
 *   `rate` in tokens per second */
/** @typedef {{message: Message, stop: () => void, now: () => void, finished: Promise<void>}} Run
 *   `now` ends the waiting for a busy server */

/** A server that is busy is asked again so often, and never waited for longer than this. */
const MOST_TRIES = 20;
const LONGEST_WAIT = 300;
/** Milliseconds of writing that a rate can be told from. */
const LEAST_MEASURED = 50;
/** Turns of one answer in which tools may be called. */
const MOST_TURNS = 8;

/**
 * Ask for an answer; it grows in `message`, after what is there already.
 * @param {object} body see `requestBody`
 * @param {Message} message
 * @param {string} key API key, or ""
 * @param {(message: Message) => void} changed called after every change of the message
 * @returns {Run}
 */
export function startAnswer(body, message, key, changed) {
  const abort = new AbortController();
  const run = { message, stop: () => abort.abort(), now: () => {} };
  run.finished = converse(run, body, key, abort.signal, changed);
  return run;
}

/** Ask, run the tools that were called, and ask again with what they returned. */
async function converse(run, body, key, signal, changed) {
  const { message } = run;
  delete message.calls;
  let repeats = false;
  for (let turn = 1; ; turn += 1) {
    const last = (turn > MOST_TURNS || repeats) && body.tools;
    const asked = last ? { ...body, tool_choice: "none" } : body;
    await insist(run, () => streamChat(asked, key, signal), signal, changed);
    if (!message.calls || message.error || message.note) return;
    if (asked !== body) {
      delete message.calls;
      message.note = "tooManyCalls";
      return;
    }
    for (const call of message.calls) {
      Object.assign(call, await runTool(call, key, signal));
      changed(message);
    }
    if (signal.aborted) {
      message.note = "stopped";
      return;
    }
    repeats = message.calls.some((call) => wasMade(call, message));
    const { continue_final_message: _, ...rest } = body;
    body = { ...rest, messages: [...body.messages, ...stepSent(takeStep(message))] };
  }
}

/** A small model that has its result may ask for it for ever. */
function wasMade({ name, arguments: given }, { steps = [] }) {
  return steps.some(({ calls }) => calls.some((one) => one.name === name && one.arguments === given));
}

/** What was said and called so far becomes a step; the message goes on behind it. */
function takeStep(message) {
  const { content, reasoning, calls } = message;
  const step = { content, ...(reasoning && { reasoning }), calls };
  message.steps = [...(message.steps ?? []), step];
  message.content = "";
  delete message.reasoning;
  delete message.calls;
  return step;
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
  const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta;
  if (content || reasoning || calls) {
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
  for (const piece of calls ?? []) takeCall(piece, message);
  if (choice.finish_reason === "length") message.note = "cutShort";
}

/** A call comes with its name first, then with its arguments in pieces. */
function takeCall({ index, id, function: { name, arguments: piece } }, message) {
  message.calls ??= [];
  message.calls[index] ??= { id, name, arguments: "" };
  message.calls[index].arguments += piece ?? "";
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
    // What came in two or three pieces at once says nothing of the speed.
    rate: last - first >= LEAST_MEASURED && tokens > 1 ? ((tokens - 1) / (last - first)) * 1000 : null,
    thought: thought ?? before?.thought ?? null,
  };
}
