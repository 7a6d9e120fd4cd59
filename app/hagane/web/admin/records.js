/** Records of training as people read them: who said what. */

import { classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";

/**
 * Messages under each other.
 * @param {{role: string, content: any}[]} messages
 * @returns {HTMLElement}
 */
export function showMessages(messages) {
  return classed("div", "messages", ...messages.flatMap(({ role, content, ...rest }) => [
    classed("p", "quiet", role),
    classed("div", "said", textOf(content ?? rest.tool_calls)),
  ]));
}

/**
 * What comes before the answer of a record, and the answer or the two of a preference.
 * @param {object} record
 * @returns {{prompt: object[], answer: object, rejected: ?object}}
 */
export function partsOf(record) {
  if (!record.messages) {
    const { input, preferred_output: [answer], non_preferred_output: [rejected] } = record;
    return { prompt: input.messages, answer, rejected };
  }
  return { prompt: record.messages.slice(0, -1), answer: record.messages.at(-1), rejected: null };
}

/**
 * A record of a preview.
 * @param {object} record
 * @returns {HTMLElement}
 */
export function showRecord(record) {
  const { prompt, answer, rejected } = partsOf(record);
  const made = classed("div", "record", showMessages([...prompt, answer]));
  if (rejected) made.append(element("p", `${t("rejected")}:`), showMessages([rejected]));
  return made;
}

/**
 * Content as text: parts that are no text stand as JSON.
 * @param {any} content
 * @returns {string}
 */
export function textOf(content) {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return JSON.stringify(content ?? "");
  return content.map((part) => part.text ?? JSON.stringify(part)).join("\n");
}
