/**
 * Conversations on the server as well, where both sides want it.
 *
 * The browser's copy is the one that the page works with. Documents are exchanged by revision; where
 * two browsers changed the same one, the messages of both are kept, as those of two tabs are.
 */

import { ApiError, call } from "../shared/api.js";
import { t } from "../shared/i18n.js";
import { loadKey } from "../shared/keys.js";
import { preferences, read, write } from "../shared/storage.js";
import { received, written } from "./document.js";
import { explain } from "./errors.js";
import { isWritten } from "./runs.js";
import * as store from "./store.js";
import { merge } from "./tabs.js";

/** @typedef {import("./store.js").Conversation} Conversation */
/** @typedef {{id: string, revision: number, deleted: boolean}} Remote */

/**
 * What was exchanged last with the key of `owner`, a digest: by conversation in `known`, the server's
 * revision and a digest of the document. `others`: whose the browser's other conversations are.
 */
const EXCHANGED = "hagane.exchanged";
const DELAY = 1500;
const EVERY = 30_000;
const MOST_TRIES = 3;

/** Keeps the browser's conversations and the server's alike. */
export class Sync {
  /**
   * @param {Map<string, Conversation>} open those that the page works with
   * @param {(id: string, deleted: boolean) => void} changed
   * @param {(text: string) => void} notice
   */
  constructor(open, changed, notice) {
    Object.assign(this, { open, changed, notice });
    /** How long the server keeps conversations; null where it keeps none. @type {?{days: number}} */
    this.offer = null;
    this.timer = null;
    this.running = Promise.resolve();
    /** Revisions that the browser has not, or not wholly; it may not give those conversations. @type {Map<string, number>} */
    this.unkept = new Map();
    this.listed = 0;
  }

  /** Ask whether the server keeps conversations, and begin. */
  async start() {
    this.offer = await ask("v1/chats").catch((error) => {
      if (!(error instanceof ApiError)) throw error;
      // Where there is no answer just now, the one before holds.
      return [401, 403, 404].includes(error.status) ? null : this.offer;
    });
    if (read(EXCHANGED)) write(EXCHANGED, ledger());
    this.soon(0);
    if (this.every) return;
    this.every = setInterval(() => document.hidden || this.soon(0), EVERY);
    addEventListener("focus", () => this.soon(0));
  }

  /**
   * Exchange what changed, with what changes until then.
   * @param {number} [delay] in milliseconds
   */
  soon(delay = DELAY) {
    if (!this.offer || !preferences.onServer) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      // Whatever went wrong, there is another time.
      this.running = this.running.then(() => this.#exchange()).catch((error) => console.error(error));
    }, delay);
  }

  async #exchange() {
    try {
      const { data } = await ask("v1/chats");
      const remotes = new Map(data.map((remote) => [remote.id, remote]));
      const before = this.listed;
      this.listed = store.listConversations().length;
      // There may be room again.
      if (this.listed < before) this.unkept.clear();
      for (const remote of remotes.values()) await this.#take(remote);
      for (const { id } of store.listConversations()) {
        if (remotes.has(id) || !isOthers(id)) await this.#give(id, remotes.get(id));
      }
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      // Without a connection there is another time; what the server refuses is for the user to know.
      if (error.status) this.notice(explain(error));
    }
  }

  async #take({ id, revision, deleted }) {
    const known = exchanged()[id];
    const local = store.openConversation(id);
    if (deleted) {
      // What was changed here since it was deleted there comes back.
      if (known && local && digest(local) === known.digest) {
        store.deleteConversation(id);
        this.changed(id, true);
      }
      if (known && !store.openConversation(id)) remember(id, null);
    } else if (known && !local) {
      await ask(`v1/chats/${id}`, { method: "DELETE" });
      remember(id, null);
    } else if (known?.revision !== revision && this.unkept.get(id) !== revision) {
      await this.#pull(id);
    }
  }

  /** Take what the server has into the browser's copy, and what is open of it. */
  async #pull(id) {
    const { revision, conversation } = await ask(`v1/chats/${id}`);
    const remote = received(id, conversation);
    if (!remote.messages.size && !store.openConversation(id)) {
      this.unkept.set(id, revision);
      return;
    }
    const { came, whole } = store.absorb(remote);
    const [shown, stored] = [this.open.get(id), store.openConversation(id)];
    if (shown && stored) {
      const { messages: _, leaf, ...entry } = stored;
      Object.assign(shown, entry);
      for (const message of came) merge(shown, message);
    }
    if (whole && remember(id, { revision, digest: digest(remote) })) {
      this.unkept.delete(id);
    } else {
      this.unkept.set(id, revision);
      this.notice(t("noRoomHere"));
    }
    this.changed(id, false);
  }

  /** @param {?Remote} remote what the server had when it was asked */
  async #give(id, remote) {
    for (let tries = 0; tries < MOST_TRIES && !this.unkept.has(id); tries += 1) {
      const local = store.openConversation(id);
      const known = exchanged()[id];
      if (!local || [...local.messages.values()].some(isWritten)) return;
      const now = digest(local);
      if (known?.digest === now) return;
      const seen = (tries ? known : remote)?.revision ?? 0;
      try {
        const body = JSON.stringify({ revision: seen, conversation: written(local) });
        const { revision } = await ask(`v1/chats/${id}`, { method: "PUT", body });
        remember(id, { revision, digest: now });
        return;
      } catch (error) {
        if (error.status === 413) this.notice(t("serverFull"));
        if (error.status === 413) return;
        if (error.status !== 409) throw error;
        await this.#pull(id);
      }
    }
  }
}

async function ask(path, options = {}) {
  const headers = options.body ? { "Content-Type": "application/json" } : {};
  const response = await call(path, loadKey("key"), { ...options, headers });
  return response.json().catch(() => {
    // Cut off, or a page of a proxy in between: as good as no answer.
    throw new ApiError({ message: "", code: "connection_lost" });
  });
}

/**
 * What is stored as {@link EXCHANGED}, for the present key: another one reaches other conversations.
 * Revisions of another key are forgotten, so that what is deleted meanwhile is no deletion there.
 */
function ledger() {
  const { owner, known = {}, others = {} } = read(EXCHANGED) ?? {};
  const present = hash(loadKey("key"));
  if (owner === present) return { owner, known, others };
  const left = store.listConversations().filter(({ id }) => id in known);
  const theirs = Object.fromEntries(left.map(({ id }) => [id, owner]));
  return { owner: present, known: {}, others: { ...others, ...theirs } };
}

function exchanged() {
  return ledger().known;
}

/** Whether a conversation was exchanged with another key: this one may be somebody else's. */
function isOthers(id) {
  const { owner, known, others } = ledger();
  return !(id in known) && (others[id] ?? owner) !== owner;
}

/** @returns {boolean} false when the browser's storage is full */
function remember(id, what) {
  const { owner, known, others } = ledger();
  if (what) known[id] = what;
  else delete known[id];
  return write(EXCHANGED, { owner, known, others });
}

/** Of what was said, whichever branch is shown. */
function digest(conversation) {
  const { title, system, messages } = written(conversation);
  const said = messages.map((message) => JSON.stringify(message)).sort();
  return hash(JSON.stringify([title, system, ...said]));
}

/** Two hashes of 32 bits side by side, in the manner of FNV-1a. */
function hash(text) {
  let [one, two] = [0x811c9dc5, 0x1b873593];
  for (let at = 0; at < text.length; at += 1) {
    const code = text.charCodeAt(at);
    one = Math.imul(one ^ code, 0x01000193);
    two = Math.imul(two ^ code, 0x85ebca6b) ^ (two >>> 13);
  }
  return `${(one >>> 0).toString(36)}.${(two >>> 0).toString(36)}`;
}
