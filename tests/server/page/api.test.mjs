import assert from "node:assert/strict";
import { test } from "node:test";

import { Answer } from "../../../mlx_fastvlm/server/page/answer.js";
import { ServerError, chatChunks, servedModel } from "../../../mlx_fastvlm/server/page/api.js";

const BASE = "http://127.0.0.1:8080/v1/";
const events = (...data) => data.map((one) => `data: ${one}\n\n`).join("");
const delta = (content, more = {}) => JSON.stringify({ model: "demo", choices: [{ delta: { content } }], ...more });

/** A fetch that answers so, and notes what it is asked. */
function answering(response, calls = []) {
  return async (url, options) => {
    calls.push({ url: `${url}`, ...options });
    return response;
  };
}

async function chunks(response, options = {}) {
  const found = [];
  for await (const chunk of chatChunks({ stream: true }, { base: BASE, fetch: answering(response), ...options })) {
    found.push(chunk);
  }
  return found;
}

test("the request", async () => {
  const calls = [];
  const { signal } = new AbortController();
  const fetch = answering(new Response(events("[DONE]")), calls);
  await chunks(null, { fetch, signal, key: "open sesame" });
  const [call] = calls;
  assert.equal(call.url, "http://127.0.0.1:8080/v1/chat/completions");
  assert.equal(call.method, "POST");
  assert.deepEqual(call.headers, { Authorization: "Bearer open sesame", "Content-Type": "application/json" });
  assert.equal(call.body, '{"stream":true}');
  assert.equal(call.signal, signal);
});

test("no key, no header", async () => {
  const calls = [];
  await chunks(null, { fetch: answering(new Response(events("[DONE]")), calls), key: "" });
  assert.deepEqual(calls[0].headers, { "Content-Type": "application/json" });
});

test("an answer, its text and what the server counted", async () => {
  const last = JSON.stringify({ choices: [{ delta: {}, finish_reason: "length" }] });
  const usage = JSON.stringify({ choices: [], usage: { completion_tokens: 5 } });
  const stream = new Response(`: waiting\n\n${events(delta(""), delta("A "), delta("star"), last, usage, "[DONE]")}`);
  let time = 1000;
  const answer = new Answer(() => time);
  const seen = [];
  time = 1250;
  await answer.read(chatChunks({}, { base: BASE, fetch: answering(stream) }), () => {
    seen.push(answer.text);
    time += 1000;
  });
  assert.deepEqual(seen, ["A ", "A star"]);
  assert.deepEqual([answer.finish, answer.model], ["length", "demo"]);
  assert.equal(answer.stats.firstToken, 0.25);
  assert.deepEqual(answer.stats.tokens, { count: 5, exact: true });
  assert.equal(answer.stats.rate, 2); // until the server told of the end, two seconds after the first
});

test("an error instead of an answer", async () => {
  const body = { error: { message: "temperature must be at least 0.", type: "x", param: "temperature", code: "bad" } };
  const response = new Response(JSON.stringify(body), { status: 429, headers: { "Retry-After": "3" } });
  await assert.rejects(chunks(response), (error) => {
    assert.ok(error instanceof ServerError);
    assert.equal(error.message, "temperature must be at least 0.");
    assert.deepEqual([error.status, error.retryAfter], [429, 3]);
    return true;
  });
});

test("an error that is no JSON", async () => {
  const response = new Response("<h1>Bad gateway</h1>", { status: 502 });
  await assert.rejects(chunks(response), /with status 502 without a reason/);
});

test("an error inside of a stream, after a part of the answer", async () => {
  const error = JSON.stringify({ error: { message: "The server is being stopped." } });
  const answer = new Answer(() => 0);
  const stream = chatChunks({}, { base: BASE, fetch: answering(new Response(events(delta("Half"), error))) });
  await assert.rejects(answer.read(stream, () => {}), /being stopped/);
  assert.equal(answer.text, "Half");
});

test("a stream that ends without [DONE], breaks or holds no JSON", async () => {
  await assert.rejects(chunks(new Response(events(delta("Half")))), /ended before the answer was complete/);
  const broken = new ReadableStream({ pull: (controller) => controller.error(new TypeError("network error")) });
  await assert.rejects(chunks(new Response(broken)), /ended before the answer was complete/);
  await assert.rejects(chunks(new Response(events("{"))), /not valid JSON/);
  await assert.rejects(chunks(new Response(events("7"))), /not valid JSON/);
});

test("no server", async () => {
  const fetch = async () => {
    throw new TypeError("fetch failed");
  };
  await assert.rejects(chunks(null, { fetch }), /can't be reached/);
  await assert.rejects(servedModel({ base: BASE, fetch }), /can't be reached/);
});

test("stopping is told from failing", async () => {
  const aborted = new DOMException("stopped", "AbortError");
  const fetch = async () => {
    throw aborted;
  };
  await assert.rejects(chunks(null, { fetch }), (error) => error === aborted);
  const stream = new ReadableStream({ pull: (controller) => controller.error(aborted) });
  await assert.rejects(chunks(new Response(stream)), (error) => error === aborted);
});

test("the served model", async () => {
  const calls = [];
  const fetch = answering(Response.json({ data: [{ id: "demo" }] }), calls);
  assert.equal(await servedModel({ base: BASE, key: "k", fetch }), "demo");
  assert.equal(calls[0].url, "http://127.0.0.1:8080/v1/models");
  assert.deepEqual(calls[0].headers, { Authorization: "Bearer k" });
});
