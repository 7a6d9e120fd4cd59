/**
 * What the browser remembers for every page: preferences, until they are deleted.
 *
 * @typedef {{model: string, system: string, temperature: ?number, topP: ?number, topK: ?number,
 *   minP: ?number, repetitionPenalty: ?number, maxTokens: ?number, seed: ?number,
 *   theme: ?string, language: ?string, current: ?string, tools: string[],
 *   second: string, onServer: boolean}} Preferences `second`: the model to compare with, "" for none;
 *   `onServer`: conversations are kept there as well, where it keeps any;
 *   `tools`: names of those that models may use
 */

const PREFERENCES = "hagane.preferences";

/** What was chosen before, and defaults for the rest. @type {Preferences} */
export const preferences = {
  model: "",
  system: "",
  temperature: null,
  topP: null,
  topK: null,
  minP: null,
  repetitionPenalty: null,
  maxTokens: null,
  seed: null,
  theme: null,
  language: null,
  current: null,
  tools: [],
  second: "",
  onServer: false,
  ...read(PREFERENCES),
};

/**
 * The stored value.
 * @param {string} key
 * @returns {any} null for one that is absent or was damaged
 */
export function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
}

/**
 * Keep `value`.
 * @param {string} key
 * @param {any} value
 * @returns {boolean} false when the browser's storage is full or forbidden
 */
export function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/**
 * Change preferences and keep them, if there is room; another tab's other changes stay.
 * @param {Partial<Preferences>} changes
 */
export function prefer(changes) {
  Object.assign(preferences, changes);
  write(PREFERENCES, { ...read(PREFERENCES), ...changes });
}
