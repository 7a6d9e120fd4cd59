/** Colours in code, by highlight.js, which is loaded with the first code, each language when met. */

const FOLDER = new URL("../vendor/highlight/", import.meta.url);
/** Longer code stays plain: an answer that grows is coloured again with every frame. */
const LONGEST = 20_000;
const LANGUAGES = new Set(("bash c cpp csharp css dart diff dockerfile elixir go haskell ini java "
  + "javascript json julia kotlin latex lua makefile markdown perl php powershell python r ruby "
  + "rust scala shell sql swift typescript xml yaml").split(" "));
const ALIASES = new Map(Object.entries({
  sh: "bash", zsh: "bash", h: "c", "c++": "cpp", cc: "cpp", hpp: "cpp", cs: "csharp", "c#": "csharp",
  patch: "diff", docker: "dockerfile", ex: "elixir", golang: "go", hs: "haskell", toml: "ini",
  js: "javascript", jsx: "javascript", mjs: "javascript", jsonl: "json", json5: "json", jl: "julia",
  kt: "kotlin", tex: "latex", make: "makefile", md: "markdown", pl: "perl", ps1: "powershell",
  py: "python", python3: "python", rb: "ruby", rs: "rust", console: "shell", ts: "typescript",
  tsx: "typescript", html: "xml", svg: "xml", yml: "yaml",
}));

/** The library, and what it has learned so far. */
let library = null;
const learned = new Map();

/**
 * Code, coloured at once where its language is known already, else as soon as it is.
 * @param {string} text
 * @param {string} language as the fence names it; one that is not known leaves the code plain
 * @returns {HTMLElement}
 */
export function highlight(text, language) {
  const made = document.createElement("code");
  made.textContent = text;
  const lower = language.toLowerCase();
  const name = ALIASES.get(lower) ?? lower;
  if (!LANGUAGES.has(name) || text.length > LONGEST) return made;
  if (learned.get(name) === true) colour(made, text, name);
  else learn(name).then(() => colour(made, text, name), () => {});
  return made;
}

function learn(name) {
  if (learned.has(name)) return learned.get(name);
  library ??= import(new URL("core.min.js", FOLDER));
  const file = import(new URL(`languages/${name}.min.js`, FOLDER));
  const loading = Promise.all([library, file]).then(([core, { default: grammar }]) => {
    core.default.registerLanguage(name, grammar);
    library = core;
    learned.set(name, true);
  });
  learned.set(name, loading);
  return loading;
}

/** The tree of tokens becomes elements; the library's own way would be HTML in a string. */
function colour(made, text, name) {
  const result = library.default.highlight(text, { language: name, ignoreIllegals: true });
  made.replaceChildren(...nodes(result._emitter.rootNode.children));
}

function nodes(children) {
  return children.map((child) => {
    if (typeof child === "string") return document.createTextNode(child);
    const made = document.createElement("span");
    if (child.scope) made.className = `token-${child.scope.split(".")[0]}`;
    made.append(...nodes(child.children));
    return made;
  });
}
