/** What other tabs do to the conversations that are open in this one. */

import { isOwn } from "./runs.js";
import { onOtherTabs } from "./store.js";

/** @typedef {import("./store.js").Conversation} Conversation */

/**
 * Keep open conversations up to date.
 * @param {Map<string, Conversation>} open by id
 * @param {(id: string, deleted: boolean) => void} changed
 */
export function followOtherTabs(open, changed) {
  onOtherTabs(
    (id, entry) => {
      const conversation = open.get(id);
      // Which branch is shown is each tab's own affair.
      if (conversation && entry) Object.assign(conversation, { ...entry, leaf: conversation.leaf });
      changed(id, !entry);
    },
    (id, message) => {
      const conversation = open.get(id);
      if (conversation && merge(conversation, message)) changed(id, false);
    },
  );
}

/**
 * Take a message that came from elsewhere; an answer to what is shown is shown, too.
 * @param {Conversation} conversation
 * @param {import("./store.js").Message} message
 * @returns {boolean} whether anything changed
 */
export function merge(conversation, message) {
  const known = conversation.messages.get(message.id);
  if (known && isOwn(known)) return false;
  if (!known) {
    conversation.messages.set(message.id, message);
    if (message.parent === conversation.leaf) conversation.leaf = message.id;
    return true;
  }
  for (const name of Object.keys(known)) if (!(name in message)) delete known[name];
  Object.assign(known, message);
  return true;
}
