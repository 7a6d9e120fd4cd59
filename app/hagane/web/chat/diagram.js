/** Diagrams in Mermaid's language, drawn in a frame apart, which is loaded with the first of them. */

import { classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";

const FRAME = new URL("../diagram/index.html", import.meta.url);
/** A diagram that takes longer is not shown. */
const PATIENCE = 20_000;
const HIGHEST = 4000;

/**
 * The diagram, and a button that changes between it and its source. Where it cannot be drawn, the
 * source stands there, and why.
 * @param {string} text
 * @param {HTMLElement} source the element that shows the source
 * @returns {{shown: HTMLElement, toggle: HTMLButtonElement}}
 */
export function diagram(text, source) {
  const shown = classed("div", "drawing");
  const toggle = classed("button", "toggle");
  toggle.type = "button";
  const show = (drawn) => {
    source.hidden = drawn;
    shown.hidden = !drawn;
    toggle.textContent = t(drawn ? "showSource" : "showDiagram");
  };
  toggle.hidden = true;
  toggle.addEventListener("click", () => show(shown.hidden));
  shown.append(frameOf(text, {
    drawn: () => {
      toggle.hidden = false;
      show(true);
    },
    failed: (why) => {
      source.hidden = false;
      toggle.hidden = true;
      shown.replaceChildren(classed("p", "quiet", t("diagramFailed")), ...(why ? [element("pre", why)] : []));
    },
  }));
  return { shown, toggle };
}

function frameOf(text, { drawn, failed }) {
  const frame = document.createElement("iframe");
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
