/** Trying things that the server may refuse, and saying so. */

import { ApiError } from "../shared/api.js";
import { t } from "../shared/i18n.js";

const $ = (id) => document.getElementById(id);
const REFUSED = new Set([401, 403]);

/** What the notice on show is about: only success at the same thing takes it away. */
let subject = "";
let refused = () => {};
/** Milliseconds for which what was done is said. */
const SAID = 6000;
let fading = 0;

/**
 * Call `action` whenever the server wants another admin key, or none.
 * @param {(error: ApiError) => void} action
 */
export function onRefused(action) {
  refused = action;
}

/**
 * An error in words, with what the server's operator may look for.
 * @param {ApiError} error
 * @returns {string}
 */
export function describe(error) {
  const id = error.requestId ? ` (${t("requestId", { id: error.requestId })})` : "";
  return (error.message || t("lost")) + id;
}

/**
 * Show `text` as what went wrong; "" for nothing.
 * @param {string} text
 * @param {string} [about]
 */
export function notice(text, about = "") {
  subject = text && about;
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

/**
 * Say `text` for a few seconds; screen readers say it once.
 * @param {string} text
 */
export function announce(text) {
  clearTimeout(fading);
  $("status").textContent = text;
  fading = setTimeout(() => $("status").replaceChildren(), SAID);
}

/**
 * Run `action`; what the server refuses is shown.
 * @param {() => Promise<any>} action
 * @param {string} [about] what the action is, in case it is tried again and again
 * @returns {Promise<boolean>} whether it went well
 */
export async function attempt(action, about = "") {
  try {
    await action();
    if (subject === about) notice("");
    return true;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (REFUSED.has(error.status)) refused(error);
    else notice(describe(error), about);
    return false;
  }
}

/**
 * Run `action` now and again while the page can be seen, and at once when it is seen again.
 * @param {number} seconds from the end of one turn to the next
 * @param {() => Promise<any>} action
 * @returns {() => void} stops it
 */
export function poll(seconds, action) {
  let timer = 0;
  let stopped = false;
  const turn = async () => {
    clearTimeout(timer);
    if (document.hidden) return;
    await attempt(() => stopped || action(), "poll");
    clearTimeout(timer);
    if (!stopped) timer = setTimeout(turn, seconds * 1000);
  };
  document.addEventListener("visibilitychange", turn);
  turn();
  return () => {
    stopped = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", turn);
  };
}
