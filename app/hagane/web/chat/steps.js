/** What a model did before it answered: tools called, with arguments and results, folded. */

import { classed, element, scrolling } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { renderMarkdown } from "./markdown.js";
import { splitThoughts } from "./request.js";

/** @typedef {import("./store.js").Message} Message */
/** @typedef {import("./store.js").Call} Call */

/** What each element of a box shows, so that only what changed is made anew. */
const shown = new WeakMap();

/**
 * Show the steps of a message, and the calls that it is making now.
 * @param {HTMLElement} box
 * @param {Message} message
 * @param {boolean} busy whether it is being written: of one that ended no call runs any more
 */
export function showSteps(box, { steps = [], calls = [] }, busy) {
  const parts = [...steps.flatMap(partsOf), ...calls.map((call) => callPart(call, busy))];
  while (box.children.length > parts.length) box.lastChild.remove();
  parts.forEach(({ key, make }, index) => {
    const old = box.children[index];
    if (old && shown.get(old) === key) return;
    const made = make();
    if (old?.open) made.open = true;
    shown.set(made, key);
    if (old) old.replaceWith(made);
    else box.append(made);
  });
}

function partsOf(step) {
  const { reasoning, answer } = splitThoughts(step);
  const thoughts = reasoning && { key: reasoning, make: () => folded("thoughts", rendered(reasoning)) };
  const said = answer.trim() && { key: answer, make: () => rendered(answer) };
  return [thoughts, said, ...step.calls.map((call) => callPart(call, false))].filter(Boolean);
}

function callPart(call, busy) {
  return { key: JSON.stringify([call, busy]), make: () => callDetails(call, busy) };
}

function rendered(text) {
  const made = classed("div", "text");
  renderMarkdown(made, text);
  return made;
}

function folded(word, ...content) {
  return classed("details", word, element("summary", t(word)), ...content);
}

/** @param {Call} call without a result while it runs, or when its answer ended before */
function callDetails({ name, arguments: given, result, failed }, busy) {
  const pending = result === undefined;
  const word = failed ? "callFailed" : !pending ? "called" : busy ? "calling" : "callUnmade";
  const summary = element("summary", t(word, { name }));
  const asked = block("callArguments", indented(given));
  const came = pending ? [] : [block("callResult", result)];
  return classed("details", `call${failed ? " failed" : ""}`, summary, ...asked, ...came.flat());
}

function block(word, text) {
  return [classed("div", "quiet", t(word)), scrolling(element("pre", text), t(word))];
}

/** JSON is set apart in lines; what is none stays as it came. */
function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
