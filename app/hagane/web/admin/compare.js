/** The same prompt to several models at once, their answers next to each other. */

import { ApiError, streamChat } from "../shared/api.js";
import { breakable, classed, element } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { loadKey } from "../shared/keys.js";
import { offerModels } from "./choices.js";
import { numbers } from "./fields.js";
import { number } from "./list.js";
import { announce, attempt, describe } from "./notice.js";

const $ = (id) => document.getElementById(id);

/**
 * @param {string} model the one that is compared with its base, or ""
 * @returns {() => void}
 */
export function openCompare(model) {
  const form = $("compare-form");
  let abort = new AbortController();
  form.onsubmit = (event) => {
    event.preventDefault();
    abort.abort();
    abort = new AbortController();
    answer(form, abort.signal);
  };
  $("compare-stop").onclick = () => abort.abort();
  attempt(() => offerModels([...form.elements.model], model));
  return () => abort.abort();
}

async function answer({ elements }, signal) {
  const models = [...elements.model].map(({ value }) => value).filter(Boolean);
  const messages = [{ role: "user", content: elements.prompt.value }];
  if (elements.system.value) messages.unshift({ role: "system", content: elements.system.value });
  const body = { messages, ...numbers(elements, ["temperature", "max_tokens", "seed"]) };
  const columns = models.map(column);
  $("answers").replaceChildren(...columns.map(({ made }) => made));
  $("compare-stop").hidden = false;
  await Promise.all(columns.map((one) => write(one, { ...body, model: one.model }, signal)));
  if (signal.aborted && $("answers").firstChild !== columns[0].made) return;
  $("compare-stop").hidden = true;
  announce(t("answered"));
}

function column(model, at) {
  const title = element("h3", ...breakable(model));
  title.id = `answer-${at}`;
  const text = classed("div", "answer");
  const figures = classed("p", "quiet", t("waiting"));
  const made = classed("article", "card", title, text, figures);
  made.setAttribute("aria-labelledby", title.id);
  made.setAttribute("aria-busy", "true");
  return { model, made, text, figures };
}

/** Stream one answer into its column; what the server refuses is shown there. */
async function write({ made, text, figures }, body, signal) {
  const began = performance.now();
  let first = null;
  let usage = null;
  try {
    for await (const chunk of streamChat(body, loadKey("adminKey"), signal)) {
      usage = chunk.usage ?? usage;
      const { reasoning_content: thought = "", content = "" } = chunk.choices[0]?.delta ?? {};
      if (!thought && !content) continue;
      first ??= performance.now();
      text.append(thought ?? "", content ?? "");
    }
    figures.textContent = said(usage, (first ?? performance.now()) - began, performance.now() - began);
  } catch (error) {
    if (error.name !== "AbortError" && !(error instanceof ApiError)) throw error;
    figures.textContent = error instanceof ApiError ? describe(error) : t("stopped");
    figures.className = error instanceof ApiError ? "trouble" : "quiet";
  }
  made.setAttribute("aria-busy", "false");
}

function said(usage, first, whole) {
  const tokens = usage?.completion_tokens ?? 0;
  return [
    t("tokensSaid", { count: number(tokens) }),
    `${t("firstToken")} ${t("seconds", { seconds: number(first / 1000, 2) })}`,
    `${t("inAll")} ${t("seconds", { seconds: number(whole / 1000, 2) })}`,
    `${number(tokens / Math.max(whole / 1000, 1e-3), 1)} ${t("tokensPerSecond")}`,
  ].join(" · ");
}
