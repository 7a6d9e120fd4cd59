/** Formulas, typeset by KaTeX, which is loaded with the first of them. */

const FOLDER = new URL("../vendor/katex/", import.meta.url);

/** The library once it is there, its loading while it is on its way. */
let katex = null;
let loading = null;

/**
 * A formula; until the library is there, and where it does not understand, the source as it came.
 * @param {string} tex what stands between the marks
 * @param {string} source with its marks
 * @param {boolean} display whether it stands on a line of its own
 * @returns {HTMLElement}
 */
export function formula(tex, source, display) {
  const made = document.createElement("span");
  made.className = "formula";
  made.textContent = source;
  if (katex) typeset(made, tex, display);
  else load().then(() => typeset(made, tex, display), () => {});
  return made;
}

function load() {
  loading ??= new Promise((loaded, failed) => {
    const style = document.createElement("link");
    style.rel = "stylesheet";
    style.href = new URL("katex.min.css", FOLDER);
    document.head.append(style);
    import(new URL("katex.min.js", FOLDER)).then(() => {
      katex = globalThis.katex;
      loaded();
    }, failed);
  });
  return loading;
}

function typeset(made, tex, display) {
  const box = document.createElement("span");
  try {
    // Bounded in every way that a hostile formula could use: no links, no endless macros.
    katex.render(tex, box, { displayMode: display, trust: false, maxExpand: 500, maxSize: 20 });
  } catch {
    return;
  }
  made.replaceChildren(...box.childNodes);
  made.classList.toggle("display", display);
}
