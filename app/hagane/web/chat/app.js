/** Composition: the one module that knows the page, the store and the server. */

import { pageExists } from "../shared/api.js";
import { prepareAppearance } from "../shared/appearance.js";
import { t } from "../shared/i18n.js";
import { loadKey } from "../shared/keys.js";
import { prefer, preferences } from "../shared/storage.js";
import { newAnswers, pairOf } from "./compare.js";
import { touches } from "./composer.js";
import { prepareControls, write } from "./controls.js";
import { Attachments, acceptFiles } from "./files.js";
import { Judging } from "./judging.js";
import { Access } from "./models.js";
import { requestBody } from "./request.js";
import { begin, isOwn, isWritten, keepOnLeaving, runsOf } from "./runs.js";
import { openSettings } from "./settings.js";
import { prepareShortcuts } from "./shortcuts.js";
import { prepareDrawer, prepareList, setDrawer, showConversations } from "./sidebar.js";
import * as store from "./store.js";
import { followOtherTabs } from "./tabs.js";
import { prepareToolMenu, showToolMenu } from "./tool-menu.js";
import { chosenTools } from "./tools.js";
import { branch, endBelow, siblings } from "./tree.js";
import { Sync } from "./sync.js";
import { MessageLog } from "./view.js";
import { WORDS } from "./words.js";
import { WORK } from "./words-work.js";

const $ = (id) => document.getElementById(id);

/** Conversations that are open in this tab: the shown one and those still being answered. */
const open = new Map();
let current = recall(preferences.current);

const log = new MessageLog($("log"), {
  retry,
  resume,
  edit,
  judge: (message, thumbs) => judging.judge(message, thumbs),
  pick: (message) => judging.pick(message),
  choose(message, word) {
    store.change(current, { leaf: endBelow(current, message) });
    show();
    log.focus(message, word);
  },
  key: () => access.refused(),
  now: () => runsOf(current.id).forEach((one) => one.now()),
  stop: stopCurrent,
});

const access = new Access($("model"), $("second"), notice, () => {
  sync.start();
  showToolMenu(toolsOf(current));
});
const judging = new Judging({ current: () => current, kept, show, notice, log });
const sync = new Sync(open, changedElsewhere, notice);
const attachments = new Attachments($("attached"), notice);

/** What the list of conversations can do. */
const list = {
  select: turnTo,
  changed(id, changes) {
    kept(store.change(open.get(id) ?? store.openConversation(id), changes));
    show();
  },
  removed(id) {
    sync.soon();
    forget(id);
    if (id === current.id) select(null);
    else show();
  },
  read(conversations) {
    for (const conversation of conversations) {
      kept(store.keepAll(conversation));
      if (!runsOf(conversation.id).length) open.delete(conversation.id);
    }
    select(conversations[0].id);
  },
  refused: notice,
};

function recall(id) {
  const found = open.get(id) ?? store.openConversation(id);
  const { system, tools } = preferences;
  const conversation = found ?? { ...store.newConversation(system), tools };
  open.set(conversation.id, conversation);
  return conversation;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

/** Say it when the browser had no room for something. */
function kept(done) {
  sync.soon();
  if (!done) notice(t("storageFull"));
}

/** Bring the whole page up to date with the current conversation. */
function show() {
  const running = runsOf(current.id).length > 0;
  const chosen = branch(current);
  const pair = pairOf(current, chosen.at(-1));
  const messages = pair.length ? [...chosen.slice(0, -1), ...pair] : chosen;
  log.show(messages, (message) => placeOf(message, messages));
  $("empty").hidden = messages.length > 0;
  $("send").textContent = t(running ? "stop" : "send");
  $("send").classList.toggle("stop", running);
  showConversations(current.id, list);
  showToolMenu(toolsOf(current));
}

/** The tools that a conversation may use: of one from elsewhere none, until it is said here. */
function toolsOf({ tools }) {
  return tools ?? [];
}

/** For this conversation and new ones. */
function useTools(tools) {
  prefer({ tools });
  kept(store.change(current, { tools }));
  showToolMenu(tools);
}

function placeOf(message, messages) {
  const busy = isWritten(message);
  if (message.writing && !busy) {
    // Its tab ended without a word.
    delete message.writing;
    message.note ??= "interrupted";
  }
  const pair = pairOf(current, messages.at(-1)).includes(message);
  const beside = pair ? [] : siblings(current, message);
  return { last: pair || message === messages.at(-1), busy, own: isOwn(message), beside, pair };
}

/** Another tab or the server brought something, or deleted it. */
function changedElsewhere(id, deleted) {
  if (deleted) forget(id);
  if (deleted && id === current.id) select(null);
  else show();
}

function forget(id) {
  runsOf(id).forEach(({ stop }) => stop());
  open.delete(id);
}

function select(id) {
  if (!runsOf(current.id).length) open.delete(current.id);
  current = recall(id);
  prefer({ current: id });
  log.clear();
  show();
  setDrawer(false);
  if (!touches()) $("prompt").focus();
}

/** What was said about the conversation before is of no use with another. */
function turnTo(id) {
  notice("");
  select(id);
}

async function send() {
  if (!(await access.known())) return;
  const text = $("prompt").value.trim();
  if ((!text && !attachments.files.length) || runsOf(current.id).length) return;
  write("");
  notice("");
  const files = attachments.take();
  say({ role: "user", content: text, ...(files.length && { files }) });
  answer();
}

/** Add a message to the current conversation and keep it. */
function say(message, parent = current.leaf) {
  const added = store.addMessage(current, message, parent);
  const { begins, leaf, updated } = { ...current, updated: Date.now() };
  kept(store.change(current, { begins, leaf, updated }) && store.keepMessage(current, added));
  return added;
}

/** Another answer beside this one; or the first to a message that has none. */
async function retry(message) {
  if (!(await access.known())) return;
  answer(message.role === "user" ? message.id : message.parent);
  $("prompt").focus();
}

/** The user's changed message beside the old one, and an answer; of an answer, a corrected one. */
function edit(message, content) {
  const { role, model, files } = message;
  const changed = say({ role, content, ...(model && { model }), ...(files && { files }) }, message.parent);
  if (role === "user") answer(changed.id);
  else show();
  $("prompt").focus();
}

/** Have the message `parent` answered; the conversation may leave the screen meanwhile. */
function answer(parent = current.leaf) {
  const answers = newAnswers().map((begun) => say(begun, parent));
  kept(store.change(current, { leaf: answers[0].id }));
  const said = branch(current).slice(0, -1);
  for (const message of answers) {
    run(message, requestBody(current.system, said, { model: message.model, tools: chosenTools(toolsOf(current)) }));
  }
}

/** Have an answer that broke off go on where it ended. */
function resume(message) {
  const model = message.model ?? preferences.model;
  const changes = { model, continue_final_message: true, tools: chosenTools(toolsOf(current)) };
  run(message, requestBody(current.system, branch(current), changes));
}

async function run(message, body) {
  const conversation = current;
  let waiting = false;
  const written = begin(conversation, message, body, loadKey("key"), () => {
    if (waiting !== "waiting" in message) {
      waiting = !waiting;
      if (conversation === current) show();
    }
    log.update(message);
  }, kept);
  prefer({ current: conversation.id });
  show();
  $("status").textContent = t("writing");
  await written;
  if (!open.has(conversation.id)) return;
  $("status").textContent = message.error ? "" : t(message.note ?? "done");
  if (message.error?.code === "model_not_found") access.load();
  if (conversation === current) show();
  else if (!runsOf(conversation.id).length) open.delete(conversation.id);
}

function settings() {
  openSettings(current.system, sync.offer, (changes) => {
    prefer(changes);
    kept(store.change(current, { system: changes.system }));
    access.load();
    sync.soon();
  });
}

function stopCurrent() {
  runsOf(current.id).forEach(({ stop }) => stop());
}

function listen() {
  prepareControls({
    send,
    stop: stopCurrent,
    isBusy: () => runsOf(current.id).length > 0,
    fresh: () => turnTo(null),
    settings,
    askKey: () => access.ask(),
  });
  prepareToolMenu(useTools);
  acceptFiles(attachments, $("files"), $("attach"), document.querySelector("main"));
  prepareList(list, show);
  prepareShortcuts({
    fresh: () => turnTo(null),
    search: () => {
      setDrawer(true);
      $("search").focus();
    },
    editLast: () => [...document.querySelectorAll(".message.user .edit")].at(-1)?.click(),
  });
  keepOnLeaving();
  followOtherTabs(open, changedElsewhere);
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
const vocabulary = { en: { ...WORDS.en, ...WORK.en }, ja: { ...WORDS.ja, ...WORK.ja } };
prepareAppearance(vocabulary, () => {
  $("hint").textContent = t(touches() ? "hintTouch" : "hint");
  log.clear();
  show();
  access.load();
});
if (!touches()) $("prompt").focus();
$("to-admin").hidden = !(await pageExists("admin"));
