// What the page asks of the server: the models, and answers as they come.

import { readEvents } from "./sse.js";

/** What the server, or the way to it, says is wrong. */
export class ServerError extends Error {
  /**
   * @param {string} message for people
   * @param {{status?: number, retryAfter?: number}} details retryAfter in seconds
   */
  constructor(message, { status, retryAfter } = {}) {
    super(message);
    this.name = "ServerError";
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** The id of the model that is served. */
export async function servedModel({ base, key, fetch = globalThis.fetch }) {
  const response = await asked(fetch, new URL("models", base), { headers: headers(key) });
  return (await response.json()).data[0].id;
}

/**
 * The chunks of an answer.
 *
 * @param {object} body of a chat request with `stream: true`
 * @param {{base: string, key?: string, signal?: AbortSignal}} options base: address of /v1/
 */
export async function* chatChunks(body, { base, key, signal, fetch = globalThis.fetch }) {
  const response = await asked(fetch, new URL("chat/completions", base), {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  try {
    for await (const { data } of readEvents(response.body)) {
      if (data === "[DONE]") return;
      const chunk = parsed(data);
      if (chunk.error) throw fromBody(chunk);
      yield chunk;
    }
  } catch (error) {
    throw error instanceof TypeError ? lost() : error; // what browsers raise for a connection that breaks
  }
  throw lost();
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function asked(fetch, url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server can't be reached; is it still running?");
  }
  if (response.ok) return response;
  const details = { status: response.status, retryAfter: seconds(response.headers.get("Retry-After")) };
  let body = null;
  try {
    body = await response.json();
  } catch {
    // a proxy's page, perhaps: the status is all there is
  }
  throw fromBody(body, details);
}

function fromBody(body, details = {}) {
  const error = body && typeof body === "object" ? body.error : null;
  if (!error || typeof error.message !== "string") {
    const status = details.status ? ` with status ${details.status}` : "";
    return new ServerError(`The server answered${status} without a reason.`, details);
  }
  return new ServerError(error.message, details);
}

function parsed(data) {
  try {
    const chunk = JSON.parse(data);
    if (chunk && typeof chunk === "object") return chunk;
  } catch {
    // told below
  }
  throw new ServerError("The server's reply is not valid JSON.");
}

function lost() {
  return new ServerError("The connection ended before the answer was complete.");
}

function seconds(header) {
  const value = Number(header);
  return header !== null && Number.isFinite(value) && value >= 0 ? value : undefined;
}
