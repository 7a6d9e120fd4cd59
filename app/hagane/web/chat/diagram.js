/** Diagrams in Mermaid's language, drawn in a frame apart, which is loaded with the first of them. */

import { classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";

const FRAME = new URL("../diagram/index.html", import.meta.url);
/** A diagram that takes longer is not shown. */
const PATIENCE = 20_000;
const HIGHEST = 4000;
/** Each frame has a library of its own in memory: diagrams beyond these wait until they are asked for. */
const MOST_FRAMES = 10;

/** Frames that the page gets within this task. @type {Set<HTMLIFrameElement>} */
const coming = new Set();

/**
 * The diagram, and a button that changes between it and its source. Where it cannot be drawn, the
 * source stands there, and why; where the page has many diagrams, the button draws it.
 * @param {string} text
 * @param {HTMLElement} source the element that shows the source
 * @returns {{shown: HTMLElement, toggle: HTMLButtonElement}}
 */
export function diagram(text, source) {
  const shown = classed("div", "drawing");
  const toggle = classed("button", "toggle");
  toggle.type = "button";
  let isDrawn = false;
  const show = (drawn) => {
    source.hidden = drawn;
    shown.hidden = !drawn;
    toggle.textContent = t(drawn ? "showSource" : "showDiagram");
  };
  const draw = () => {
    shown.hidden = false;
    shown.append(frameOf(text, {
      drawn: () => {
        isDrawn = true;
        toggle.hidden = false;
        show(true);
      },
      failed: (why) => {
        source.hidden = false;
        toggle.hidden = true;
        shown.replaceChildren(classed("p", "quiet", t("diagramFailed")), ...(why ? [element("pre", why)] : []));
      },
    }));
  };
  toggle.addEventListener("click", () => {
    if (isDrawn) show(shown.hidden);
    else if (!shown.firstChild) draw();
  });
  toggle.hidden = frames() < MOST_FRAMES;
  if (toggle.hidden) draw();
  else show(false);
  return { shown, toggle };
}

/** How many frames the page has, with those that it gets just now. */
function frames() {
  const apart = [...coming].filter((frame) => !frame.isConnected);
  return document.querySelectorAll(".drawing iframe").length + apart.length;
}

function frameOf(text, { drawn, failed }) {
  const frame = document.createElement("iframe");
  coming.add(frame);
  queueMicrotask(() => coming.delete(frame));
  frame.setAttribute("sandbox", "allow-scripts");
  frame.title = t("diagram");
  frame.src = FRAME;
  // As high as a line until it is drawn: hidden frames have no size to draw in.
  frame.style.height = "3rem";
  const give = () => end(() => failed(""));
  const timer = setTimeout(give, PATIENCE);
  let waiting = true;
  const end = (act) => {
    clearTimeout(timer);
    if (waiting) act();
    waiting = false;
  };
  const listen = ({ source, data }) => {
    if (!frame.isConnected && !waiting) removeEventListener("message", listen);
    if (source !== frame.contentWindow || !source) return;
    if (data.ready) source.postMessage({ text, dark: isDark() }, "*");
    if (data.failed) end(() => failed(String(data.failed)));
    if (data.height > 0) {
      frame.style.height = `${Math.min(Math.ceil(data.height), HIGHEST)}px`;
      end(drawn);
    }
  };
  addEventListener("message", listen);
  return frame;
}

function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
