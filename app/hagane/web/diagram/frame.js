/**
 * Draws one diagram in a frame of nobody's origin: the library makes HTML and styles from strings,
 * which the page itself forbids. Here there is nothing to steal and nowhere to send it.
 */

const LONGEST = 20_000;

addEventListener("message", ({ source, data }) => {
  if (source === parent && typeof data?.text === "string") draw(data.text, data.dark === true);
});
parent.postMessage({ ready: true }, "*");

async function draw(text, dark) {
  document.documentElement.classList.toggle("dark", dark);
  mermaid.initialize({
    startOnLoad: false,
    securityLevel: "strict",
    theme: dark ? "dark" : "default",
    fontFamily: "system-ui, sans-serif",
    maxTextSize: LONGEST,
    maxEdges: 300,
    suppressErrorRendering: true,
  });
  try {
    const { svg } = await mermaid.render("diagram", text);
    const parsed = new DOMParser().parseFromString(svg, "text/html");
    document.body.replaceChildren(parsed.querySelector("svg"));
    parent.postMessage({ height: document.documentElement.offsetHeight }, "*");
  } catch (error) {
    parent.postMessage({ failed: String(error.message ?? error).slice(0, 500) }, "*");
  }
}

addEventListener("resize", () => {
  if (document.querySelector("body > svg")) {
    parent.postMessage({ height: document.documentElement.offsetHeight }, "*");
  }
});
