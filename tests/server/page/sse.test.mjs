import assert from "node:assert/strict";
import { test } from "node:test";

import { EventParser, readEvents } from "../../../mlx_fastvlm/server/page/sse.js";

const STREAM = [
  "\uFEFF: waiting\n\n",
  'data: {"text": "Grüße 🦊"}\n\n',
  "event: error\r\ndata: one\r\ndata:two\r\n\r\n",
  "id: 7\rretry: 10\rdata\rdata:  x: y\r\r",
  ": a comment: with a colon\n\n",
  "event: nothing\n\n",
  "data: [DONE]\n\n",
  "data: never ended",
].join("");
const EVENTS = [
  { event: "message", data: '{"text": "Grüße 🦊"}' },
  { event: "error", data: "one\ntwo" },
  { event: "message", data: "\n x: y" },
  { event: "message", data: "[DONE]" },
];

function parsed(pieces) {
  const parser = new EventParser();
  return pieces.flatMap((piece) => parser.push(piece));
}

function body(chunks) {
  return new ReadableStream({
    start(controller) {
      chunks.forEach((chunk) => controller.enqueue(chunk));
      controller.close();
    },
  });
}

test("events, comments, line ends of all kinds", () => {
  assert.deepEqual(parsed([STREAM]), EVENTS);
});

test("any split in two and three gives the same events", () => {
  for (let one = 0; one <= STREAM.length; one += 1) {
    assert.deepEqual(parsed([STREAM.slice(0, one), STREAM.slice(one)]), EVENTS, `split at ${one}`);
    for (let two = one; two <= STREAM.length; two += 1) {
      const pieces = [STREAM.slice(0, one), STREAM.slice(one, two), STREAM.slice(two)];
      assert.deepEqual(parsed(pieces), EVENTS, `split at ${one} and ${two}`);
    }
  }
});

test("single characters", () => {
  assert.deepEqual(parsed(STREAM.split("")), EVENTS);
});

test("an event is there as soon as its empty line is", () => {
  const parser = new EventParser();
  assert.deepEqual(parser.push("data: a\r\n\r"), [{ event: "message", data: "a" }]);
  assert.deepEqual(parser.push("\ndata: b\n\n"), [{ event: "message", data: "b" }]);
});

test("bytes split anywhere, within characters too", async () => {
  const bytes = new TextEncoder().encode(STREAM);
  for (let size = 1; size <= 9; size += 1) {
    const chunks = [];
    for (let at = 0; at < bytes.length; at += size) chunks.push(bytes.slice(at, at + size));
    const events = [];
    for await (const event of readEvents(body(chunks))) events.push(event);
    assert.deepEqual(events, EVENTS, `${size} bytes at a time`);
  }
});

test("who leaves the loop closes the connection", async () => {
  let cancelled = false;
  const stream = new ReadableStream({
    pull: (controller) => controller.enqueue(new TextEncoder().encode("data: x\n\n")),
    cancel: () => {
      cancelled = true;
    },
  });
  for await (const event of readEvents(stream)) {
    assert.equal(event.data, "x");
    break;
  }
  assert.ok(cancelled);
});
