/** A conversation as a tree: which messages are shown, and which stand beside them. */

/** @typedef {import("./store.js").Conversation} Conversation */
/** @typedef {import("./store.js").Message} Message */

/**
 * The messages of the chosen branch, from the first to the last.
 * @param {Conversation} conversation
 * @returns {Message[]}
 */
export function branch({ messages, leaf }) {
  const found = [];
  const seen = new Set();
  let message = messages.get(leaf) ?? newest([...messages.values()]);
  while (message && !seen.has(message)) {
    seen.add(message);
    found.unshift(message);
    message = messages.get(message.parent);
  }
  return found;
}

/**
 * The messages that follow the same one as `message` does, itself among them, oldest first.
 * @param {Conversation} conversation
 * @param {Message} message
 * @returns {Message[]}
 */
export function siblings(conversation, message) {
  return following(conversation, message.parent);
}

/**
 * The end of the branch that was last written to below `message`.
 * @param {Conversation} conversation
 * @param {Message} message
 * @returns {string} id
 */
export function endBelow(conversation, message) {
  let end = message;
  for (;;) {
    const next = newest(following(conversation, end.id));
    if (!next) return end.id;
    end = next;
  }
}

function following({ messages }, parent) {
  const found = [...messages.values()].filter((one) => one.parent === parent);
  return found.sort((a, b) => a.at - b.at || (a.id < b.id ? -1 : 1));
}

function newest(messages) {
  return messages.reduce((best, one) => (best && best.at > one.at ? best : one), null);
}
