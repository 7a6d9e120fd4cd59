/** The server's HTTP API: asking, errors, events, models, and answers as they are written. */

/** What the server said was wrong, in OpenAI's error shape; or that it could not be reached. */
export class ApiError extends Error {
  /**
   * @param {{message: string, code?: ?string, param?: ?string}} error
   * @param {{status?: number, retryAfter?: ?number, requestId?: ?string}} [response]
   */
  constructor(error, { status = 0, retryAfter = null, requestId = null } = {}) {
    super(error.message);
    this.name = "ApiError";
    this.code = error.code ?? null;
    this.param = error.param ?? null;
    this.status = status;
    this.retryAfter = retryAfter;
    this.requestId = requestId;
  }

  /** What a conversation keeps of it. */
  toJSON() {
    const { message, code, param, status, retryAfter, requestId } = this;
    return { message, code, param, status, retryAfter, requestId };
  }
}

/** @returns {ApiError} the connection ended before the answer did, or never began */
function lost() {
  return new ApiError({ message: "", code: "connection_lost" });
}

/**
 * Ask the server, with the key if there is one.
 * @param {string} path relative to the server's root
 * @param {string} key "" for none
 * @param {RequestInit} [options]
 * @returns {Promise<Response>}
 * @throws {ApiError} for every answer but a good one; `AbortError` when `signal` says so
 */
export async function call(path, key, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : lost();
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const about = {
    status: response.status,
    retryAfter: Number(response.headers.get("Retry-After")) || null,
    requestId: response.headers.get("X-Request-Id"),
  };
  try {
    const { error } = await response.json();
    return new ApiError({ ...error, message: String(error.message) }, about);
  } catch {
    // A proxy in between may answer with a page of its own.
    return new ApiError({ message: `HTTP ${response.status} ${response.statusText}` }, about);
  }
}

/**
 * The models and adapters that can be chatted with.
 * @param {string} key API key, or ""
 * @returns {Promise<{id: string, parent?: ?string}[]>} `parent`: what an adapter was tuned from
 * @throws {ApiError}
 */
export async function listModels(key) {
  const response = await call("v1/models", key);
  return (await response.json()).data;
}

/**
 * Whether there is a page at `path`: administration may have an address of its own.
 * @param {string} path
 * @returns {Promise<boolean>}
 */
export async function pageExists(path) {
  const response = await fetch(path, { method: "HEAD" }).catch(() => null);
  return response?.ok ?? false;
}

/**
 * The chunks of a streamed chat completion, in order.
 * @param {object} body of POST /v1/chat/completions
 * @param {string} key API key, or ""
 * @param {AbortSignal} signal aborting it stops the generation on the server as well
 * @returns {AsyncGenerator<object>}
 * @throws {ApiError} for an error before or within the stream, and for a stream that breaks off
 */
export async function* streamChat(body, key, signal) {
  const response = await call("v1/chat/completions", key, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const requestId = response.headers.get("X-Request-Id");
  try {
    for await (const data of readEvents(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error, { requestId });
      yield chunk;
    }
  } catch (error) {
    throw error instanceof ApiError || error.name === "AbortError" ? error : lost();
  }
  throw lost();
}

/**
 * Tell the server what somebody thinks of an answer.
 * @param {string} id of the completion
 * @param {{thumbs?: "up" | "down", preferred_over?: string}} judgement
 * @param {string} key API key, or ""
 * @throws {ApiError}
 */
export async function sendFeedback(id, judgement, key) {
  await call("v1/feedback", key, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ completion_id: id, ...judgement }),
  });
}

/**
 * The data of each server-sent event in a stream of bytes.
 * @param {ReadableStream<Uint8Array>} stream
 * @returns {AsyncGenerator<string>}
 */
export async function* readEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    // Leaving the loop early closes the connection, which is what cancels on the server.
    await reader.cancel().catch(() => {});
  }
}
