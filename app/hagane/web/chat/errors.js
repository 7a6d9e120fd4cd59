/** What went wrong, in the page's language. */

import { t } from "../shared/i18n.js";

/** By the server's code; else by the HTTP status. */
const CODES = {
  connection_lost: "lost",
  invalid_api_key: "errorKey",
  permission_denied: "errorPermission",
  context_length_exceeded: "errorLength",
  model_not_found: "errorModel",
  rate_limit_exceeded: "errorLimit",
  engine_crashed: "errorCrashed",
};
const STATUSES = {
  401: "errorKey",
  403: "errorPermission",
  408: "errorTimeout",
  413: "errorTooLarge",
  429: "errorLimit",
  503: "errorBusy",
  504: "errorTimeout",
};

/**
 * One sentence about an error.
 * @param {{code: ?string, status: number, param?: ?string}} error
 * @returns {string}
 */
export function explain({ code, status, param }) {
  const word = param === "tools" ? "errorTools" : CODES[code] ?? STATUSES[status];
  return t(word ?? (status >= 400 && status < 500 ? "errorRequest" : "errorServer"));
}

/**
 * What a person who runs the server wants to know of it, the server's own words among it.
 * @param {object} error as {@link ApiError} keeps itself
 * @returns {string[]} paragraphs
 */
export function details(error) {
  if (error.code === "connection_lost") return [];
  const facts = [
    error.status ? `HTTP ${error.status}` : "",
    error.code,
    error.param,
    error.retryAfter ? t("wait", { seconds: error.retryAfter }) : "",
    error.requestId ? t("requestId", { id: error.requestId }) : "",
  ];
  return [error.message, facts.filter(Boolean).join(" · ")].filter(Boolean);
}
