/**
 * The keys of the API and of administration: kept in this tab, and lent to the other tabs of the
 * page; or kept in this browser, where the user said so.
 */

const channel = new BroadcastChannel("hagane.keys");
/** Milliseconds that another tab has to answer in. */
const PATIENCE = 200;

/** @typedef {"key" | "adminKey"} Which that of the API or that of administration */

/**
 * The key to ask with.
 * @param {Which} which
 * @returns {string} "" for none
 */
export function loadKey(which) {
  return sessionStorage.getItem(name(which)) ?? localStorage.getItem(name(which)) ?? "";
}

/**
 * Whether the key outlives the page's tabs.
 * @param {Which} which
 * @returns {boolean}
 */
export function isKept(which) {
  return localStorage.getItem(name(which)) !== null;
}

/**
 * Keep a key, here and in the page's other tabs.
 * @param {Which} which
 * @param {string} key "" forgets it
 * @param {boolean} [keep] in this browser, beyond its tabs
 */
export function saveKey(which, key, keep = false) {
  localStorage.removeItem(name(which));
  sessionStorage.removeItem(name(which));
  if (key) (keep ? localStorage : sessionStorage).setItem(name(which), key);
  channel.postMessage({ which, key, keep });
}

/**
 * The key that another tab of the page has.
 * @param {Which} which
 * @returns {Promise<string>} "" for none
 */
export async function borrowKey(which) {
  channel.postMessage({ which, wanted: true });
  const until = performance.now() + PATIENCE;
  while (!loadKey(which) && performance.now() < until) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return loadKey(which);
}

function name(which) {
  return `hagane.${which}`;
}

channel.onmessage = ({ data: { which, key, keep, wanted } }) => {
  const own = sessionStorage.getItem(name(which));
  if (wanted) {
    if (own) channel.postMessage({ which, key: own });
  } else if (key && !keep) sessionStorage.setItem(name(which), key);
  else sessionStorage.removeItem(name(which));
};
