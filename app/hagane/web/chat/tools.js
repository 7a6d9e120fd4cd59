/** The server's tools: which there are, how a request names them, running one. */

import { ApiError, call } from "../shared/api.js";
import { t } from "../shared/i18n.js";
import { details, explain } from "./errors.js";

/** @typedef {import("./store.js").Call} Call */
/** @typedef {{type: string, function: {name: string, description: string, parameters: object},
 *   source: string}} Tool `source`: the MCP server that has it, "" for the built-in ones */

/** What the server offers. @type {Tool[]} */
let offered = [];
/** Whether it has said so: until then, what it does not offer may just not be known. */
let asked = false;
/** Built-in tools are described in the page's language; the server's own words are for models. */
const DESCRIPTIONS = { calculator: "toolCalculator", clock: "toolClock", fetch: "toolFetch" };

/**
 * Ask what tools there are; none where the server does not answer that.
 * @param {string} key API key, or ""
 */
export async function loadTools(key) {
  try {
    offered = (await (await call("v1/tools", key)).json()).data;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    offered = [];
  }
  asked = true;
}

/**
 * What the user may choose from, and what was chosen and is not there: its server may come back.
 * @param {string[]} names those that are on
 * @returns {{name: string, source: string, description: string, on: boolean, missing: boolean}[]}
 */
export function toolChoices(names) {
  const choices = offered.map(({ source, function: { name, description } }) => ({
    name,
    source,
    description: !source && DESCRIPTIONS[name] ? t(DESCRIPTIONS[name]) : description,
    on: names.includes(name),
    missing: false,
  }));
  const known = new Set(choices.map(({ name }) => name));
  const missing = names.filter((name) => asked && !known.has(name));
  const description = t("toolMissing");
  return [...choices, ...missing.map((name) => ({ name, source: "", description, on: true, missing: true }))];
}

/**
 * The tools that are on and there, as a request names them.
 * @param {string[]} names
 * @returns {?object[]} null for none
 */
export function chosenTools(names) {
  const on = offered.filter(({ function: { name } }) => names.includes(name));
  return on.length ? on.map(({ type, function: told }) => ({ type, function: told })) : null;
}

/**
 * Have the server run a call.
 * @param {Call} called
 * @param {string} key API key, or ""
 * @param {AbortSignal} signal
 * @returns {Promise<{result: string, failed?: boolean}>} whatever went wrong is the result, too
 */
export async function runTool({ name, arguments: text }, key, signal) {
  try {
    const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
    const response = await call("v1/tools/call", key, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ name, arguments: JSON.parse(text || "{}"), time_zone: zone }),
      signal,
    });
    const { content, is_error: failed } = await response.json();
    return { result: content, ...(failed && { failed }) };
  } catch (error) {
    if (error.name === "AbortError") return { result: t("stopped"), failed: true };
    if (error instanceof SyntaxError) return { result: t("toolArguments"), failed: true };
    if (!(error instanceof ApiError)) throw error;
    return { result: details(error)[0] ?? explain(error), failed: true };
  }
}
