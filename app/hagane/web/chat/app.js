/** Composition: the one module that knows the page, the store and the server. */

import { ApiError, listModels, pageExists, sendFeedback } from "../shared/api.js";
import { prepareAppearance } from "../shared/appearance.js";
import { t } from "../shared/i18n.js";
import { loadKey, prefer, preferences } from "../shared/storage.js";
import { requestBody, startAnswer } from "./answer.js";
import { fit, onEnter } from "./composer.js";
import { offerModels } from "./models.js";
import { openSettings } from "./settings.js";
import { prepareDrawer, setDrawer, showConversations } from "./sidebar.js";
import * as store from "./store.js";
import { MessageLog } from "./view.js";
import { WORDS } from "./words.js";

const $ = (id) => document.getElementById(id);

/** Conversations that are open in this tab: the shown one and those still being answered. */
const open = new Map();
/** Answers being written, by conversation id. */
const runs = new Map();
let current = recall(preferences.current);

const log = new MessageLog($("log"), {
  retry,
  edit(text) {
    const at = current.messages.findLastIndex(({ role }) => role === "user");
    current.messages.splice(at, Infinity, { role: "user", content: text });
    answer();
    $("prompt").focus();
  },
  judge,
  key: () => settings("key"),
});

function recall(id) {
  const found = open.get(id) ?? store.listConversations().find((one) => one.id === id);
  const conversation = found ?? store.newConversation(preferences.system);
  open.set(conversation.id, conversation);
  return conversation;
}

function save(conversation) {
  notice(store.saveConversation(conversation) ? "" : t("storageFull"));
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

/** Bring the whole page up to date with the current conversation. */
function show() {
  const running = runs.has(current.id);
  log.show(current.messages, running);
  $("empty").hidden = current.messages.length > 0;
  $("send").textContent = t(running ? "stop" : "send");
  $("send").classList.toggle("stop", running);
  showConversations(current, {
    select,
    changed(conversation) {
      save(conversation);
      show();
    },
    removed(id) {
      runs.get(id)?.stop();
      open.delete(id);
      select(null);
    },
  });
}

function select(id) {
  if (!runs.has(current.id)) open.delete(current.id);
  current = recall(id);
  prefer({ current: id });
  log.clear();
  show();
  setDrawer(false);
  $("prompt").focus();
}

async function send() {
  if (!(await modelIsKnown())) return;
  const text = $("prompt").value.trim();
  if (!text || runs.has(current.id)) return;
  $("prompt").value = "";
  fit($("prompt"));
  current.messages.push({ role: "user", content: text });
  answer();
}

async function retry() {
  if (!(await modelIsKnown())) return;
  if (current.messages.at(-1).role === "assistant") current.messages.pop();
  answer();
  $("prompt").focus();
}

/** Have the last message answered; the conversation may leave the screen meanwhile. */
async function answer() {
  const conversation = current;
  conversation.updated = Date.now();
  const body = requestBody(conversation);
  const run = startAnswer(conversation, body, loadKey("key"), (message) => log.update(message));
  runs.set(conversation.id, run);
  prefer({ current: conversation.id });
  save(conversation);
  show();
  $("status").textContent = t("writing");
  await run.finished;
  runs.delete(conversation.id);
  if (!open.has(conversation.id)) return;
  save(conversation);
  $("status").textContent = run.message.error ? "" : t(run.message.note ?? "done");
  if (run.message.error?.code === "model_not_found") loadModels();
  if (conversation === current) show();
  else open.delete(conversation.id);
}

/** Send the thumbs of an answer; they stay pressed once the server has them. */
async function judge(message, thumbs) {
  const conversation = current;
  try {
    await sendFeedback(message.id, thumbs, loadKey("key"));
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    notice(error.message || t("lost"));
    return;
  }
  message.thumbs = thumbs;
  save(conversation);
  if (conversation !== current) return;
  show();
  log.focus(message, thumbs === "up" ? "good" : "bad");
  $("status").textContent = t("thanks");
}

/** Asks again for the models when the first attempt failed; the page then says why. */
async function modelIsKnown() {
  if (!$("model").value) await loadModels();
  return $("model").value !== "";
}

async function loadModels() {
  try {
    const models = await listModels(loadKey("key"));
    prefer({ model: offerModels($("model"), models, preferences.model) });
    notice("");
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    notice(error.message || t("lost"));
    if (error.status === 401) settings("key");
  }
}

function settings(focus) {
  openSettings(current.system, (changes) => {
    current.system = changes.system;
    prefer(changes);
    save(current);
    loadModels();
  }, focus);
}

function stopCurrent() {
  runs.get(current.id)?.stop();
}

function listen() {
  const prompt = $("prompt");
  onEnter(prompt, send);
  prompt.addEventListener("input", () => fit(prompt));
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing) stopCurrent();
  });
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (runs.has(current.id)) stopCurrent();
    else send();
    prompt.focus();
  });
  $("new-chat").addEventListener("click", () => select(null));
  $("model").addEventListener("change", () => prefer({ model: $("model").value }));
  $("open-settings").addEventListener("click", () => settings());
  // What was written so far survives a reload in the middle of an answer.
  addEventListener("pagehide", () => {
    for (const id of runs.keys()) store.saveConversation(open.get(id));
  });
}

/** A link such as `./#model=NAME` begins a conversation with that model. */
function followLink() {
  const model = new URLSearchParams(location.hash.slice(1)).get("model");
  if (!model) return;
  history.replaceState(null, "", location.pathname);
  prefer({ model, current: null });
  current = recall(null);
}

followLink();
prepareDrawer();
listen();
prepareAppearance(WORDS, () => {
  log.clear();
  show();
  loadModels();
});
$("prompt").focus();
$("to-admin").hidden = !(await pageExists("admin"));
