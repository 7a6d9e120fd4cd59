/** The routes of administration, asked with the admin key of this tab. */

import { ApiError, call, readEvents } from "../shared/api.js";
import { loadKey } from "../shared/keys.js";

const PAGE = 100;

/** @typedef {{id: string, type: "message" | "metrics", level: "info" | "warn" | "error",
 *   message: string, created_at: number, data: object}} JobEvent */

/**
 * Ask one of the routes.
 * @param {string} path relative to the server's root
 * @param {{method?: string, json?: object, body?: FormData, signal?: AbortSignal}} [options]
 * @returns {Promise<any>} the parsed answer, or null for an empty one
 * @throws {ApiError}
 */
export async function request(path, { method, json, body, signal } = {}) {
  const headers = json ? { "Content-Type": "application/json" } : {};
  const options = { headers, signal, body: json ? JSON.stringify(json) : body };
  options.method = method ?? (options.body ? "POST" : "GET");
  const response = await call(path, loadKey("adminKey"), options);
  const text = await response.text();
  return response.headers.get("Content-Type")?.startsWith("application/json")
    ? JSON.parse(text)
    : null;
}

/**
 * The text of a file.
 * @param {string} path
 * @returns {Promise<string>}
 * @throws {ApiError}
 */
export async function requestText(path) {
  return (await call(path, loadKey("adminKey"))).text();
}

/**
 * A file as it is.
 * @param {string} path
 * @returns {Promise<Blob>}
 * @throws {ApiError}
 */
export async function requestBlob(path) {
  return (await call(path, loadKey("adminKey"))).blob();
}

/**
 * Every entry of a list that comes in pages.
 * @param {string} path
 * @returns {Promise<object[]>}
 * @throws {ApiError}
 */
export async function listAll(path) {
  const found = [];
  for (let after = ""; ; after = `&after=${encodeURIComponent(found.at(-1).id)}`) {
    const page = await request(`${path}?limit=${PAGE}${after}`);
    found.push(...page.data);
    if (!page.has_more) return found;
  }
}

/**
 * The path of one thing below a list, its name escaped.
 * @param {string} list
 * @param {...string} parts
 * @returns {string}
 */
export function pathOf(list, ...parts) {
  return [list, ...parts.map(encodeURIComponent)].join("/");
}

/**
 * The events of a job from its first to its last, as they happen. A lost connection is taken up
 * again where it broke.
 * @param {string} job
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<JobEvent>}
 * @throws {ApiError} when the server refuses
 */
export async function* followEvents(job, signal) {
  const path = `${pathOf("v1/fine_tuning/jobs", job)}/events?stream=true`;
  let after = "";
  while (!signal.aborted) {
    try {
      const response = await call(path + after, loadKey("adminKey"), { signal });
      for await (const data of readEvents(response.body)) {
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new ApiError(event.error, { status: response.status });
        after = `&after=${encodeURIComponent(event.id)}`;
        yield event;
      }
    } catch (error) {
      if (error instanceof ApiError && error.status) throw error;
    }
    await new Promise((resume) => setTimeout(resume, 2000));
  }
}
