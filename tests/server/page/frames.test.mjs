import assert from "node:assert/strict";
import { test } from "node:test";

import { FrameLoop } from "../../../mlx_fastvlm/server/page/frames.js";

/** A loop over frames 1, 2, 3 ... whose answers come, or fail, when the test says so. */
function setUp() {
  const it = { time: 0, frame: 0, asked: [], failures: [], most: 0, open: 0 };
  it.loop = new FrameLoop({
    capture: () => (it.frame === 0 ? null : it.frame),
    ask: (frame, signal) =>
      new Promise((resolve, reject) => {
        it.open += 1;
        it.most = Math.max(it.most, it.open);
        const end = (settle) => (value) => {
          it.open -= 1;
          settle(value);
        };
        it.asked.push({ frame, signal, answer: end(resolve), fail: end(reject) });
      }),
    failed: (error, paused) => it.failures.push([error.message, paused]),
    now: () => it.time,
  });
  it.next = () => {
    it.frame += 1;
    return it.loop.offer();
  };
  return it;
}

test("the newest frame wins, and there is one request at a time", async () => {
  const it = setUp();
  it.loop.start();
  const first = it.next();
  for (let i = 0; i < 5; i += 1) assert.equal(it.next(), null);
  assert.deepEqual(it.asked.map(({ frame }) => frame), [1]);
  it.asked[0].answer();
  await first;
  const second = it.next();
  assert.deepEqual(it.asked.map(({ frame }) => frame), [1, 7]); // 2 to 6 are never asked about
  it.asked[1].answer();
  await second;
  assert.equal(it.most, 1);
});

test("nothing is asked before the start, nor before there is a frame", () => {
  const it = setUp();
  assert.equal(it.next(), null);
  it.frame = 0;
  it.loop.start();
  assert.equal(it.loop.offer(), null);
  assert.equal(it.asked.length, 0);
});

test("a pause gives the request up, and no other begins before that has ended", async () => {
  const it = setUp();
  it.loop.start();
  const first = it.next();
  it.loop.pause();
  assert.ok(it.asked[0].signal.aborted);
  assert.equal(it.next(), null);
  it.loop.start();
  assert.equal(it.next(), null); // the first is still ending
  it.asked[0].fail(new Error("AbortError"));
  await first;
  assert.deepEqual(it.failures, []);
  assert.ok(it.loop.running);
  it.next();
  assert.equal(it.asked.length, 2);
  assert.ok(!it.asked[1].signal.aborted);
  assert.equal(it.most, 1);
});

test("a failure pauses, and is told", async () => {
  const it = setUp();
  it.loop.start();
  const first = it.next();
  it.asked[0].fail(new Error("no such model"));
  await first;
  assert.deepEqual(it.failures, [["no such model", true]]);
  assert.ok(!it.loop.running);
  assert.equal(it.next(), null);
  assert.equal(it.asked.length, 1);
});

test("a full server is asked again when it says", async () => {
  const it = setUp();
  it.loop.start();
  const first = it.next();
  it.asked[0].fail(Object.assign(new Error("busy"), { retryAfter: 2 }));
  await first;
  assert.deepEqual(it.failures, [["busy", false]]);
  it.time = 1999;
  assert.equal(it.next(), null);
  it.time = 2000;
  assert.notEqual(it.next(), null);
});

test("frames a second, by the clock", async () => {
  const it = setUp();
  it.loop.start();
  for (let i = 0; i < 20; i += 1) {
    const request = it.next();
    it.time += 250;
    it.asked.at(-1).answer();
    await request;
  }
  assert.equal(it.loop.rate.perSecond, 4);
  it.loop.pause();
  it.loop.start();
  assert.equal(it.loop.rate.perSecond, null);
});

test("whatever happens in whatever order, one request at a time and each frame newer", async () => {
  let state = 1;
  const random = (n) => {
    state = (state * 48271) % 2147483647;
    return state % n;
  };
  const it = setUp();
  const open = [];
  for (let i = 0; i < 5000; i += 1) {
    it.time += random(500);
    const what = random(6);
    if (what === 0) it.loop.pause();
    else if (what === 1) it.loop.start();
    else if (what === 2 && open.length) {
      const { request, settle } = open.pop();
      settle();
      await request;
    } else {
      const request = it.next();
      if (request !== null) {
        const { answer, fail } = it.asked.at(-1);
        const error = Object.assign(new Error("busy"), { retryAfter: random(3) });
        open.push({ request, settle: random(3) ? answer : () => fail(error) });
      }
    }
  }
  assert.equal(it.most, 1);
  assert.ok(it.asked.length > 100);
  assert.ok(it.asked.every(({ frame }, i) => i === 0 || frame > it.asked[i - 1].frame));
});
