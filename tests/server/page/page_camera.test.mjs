// The live camera.

import assert from "node:assert/strict";
import { test } from "node:test";

import { SCENES, open, skip, until, uri } from "./harness.mjs";

test("the camera: captions follow what it sees, one request at a time", { skip }, async () => {
  const it = await open();
  it.byId("show-camera").click();
  assert.ok(it.byId("chat").hidden && !it.byId("camera").hidden);
  it.byId("camera-prompt").value = "Describe the image.";
  it.byId("camera-size").value = "256";
  it.byId("camera-size").dispatch("input");
  assert.equal(it.byId("camera-size-shown").textContent, "256 pixels");
  Object.assign(it.byId("video"), { videoWidth: 1280, videoHeight: 720 });
  it.document.drawing = uri(SCENES[0]);
  it.byId("camera-start").click();
  const frame = () => it.document.frames.splice(0).forEach((callback) => callback());
  const captions = [];
  for (const scene of [0, 1]) {
    const drawings = it.document.drawings.length;
    it.document.drawing = uri(SCENES[scene]);
    it.byId("caption").textContent = "";
    await until(() => {
      frame();
      return it.byId("camera-stats").textContent.includes("frames/s") && it.document.drawings.length > drawings + 2;
    });
    captions.push(it.byId("caption").textContent);
  }
  assert.match(it.byId("camera-stats").textContent, /^[\d.]+ frames\/s · first token after/);
  assert.deepEqual(it.document.drawings.at(-1), { ...it.document.drawings.at(-1), width: 256, height: 144, type: "image/jpeg" });
  assert.notEqual(captions[0], captions[1]);

  it.byId("camera-pause").click();
  assert.equal(it.byId("camera-pause").textContent, "Resume");
  const drawings = it.document.drawings.length;
  frame();
  assert.equal(it.document.drawings.length, drawings);
  it.byId("show-chat").click();
  assert.ok(it.tracks[0].stopped);
  frame(); // the last that waited
  assert.equal(it.document.frames.length, 0);
  assert.equal(it.byId("camera-start").textContent, "Start camera");
  assert.equal(it.notice(), "");
});

test("the camera says why it stops", { skip }, async () => {
  const it = await open();
  it.byId("show-camera").click();
  it.byId("max-tokens").value = "1000000";
  Object.assign(it.byId("video"), { videoWidth: 256, videoHeight: 256 });
  it.document.drawing = uri(SCENES[0]);
  it.byId("camera-start").click();
  await until(() => {
    it.document.frames.splice(0).forEach((callback) => callback());
    return it.notice() !== "";
  });
  assert.match(it.notice(), /max_completion_tokens must be at most/);
  assert.equal(it.byId("camera-pause").textContent, "Resume");
  globalThis.navigator.mediaDevices = undefined;
  it.byId("camera-start").click(); // lets go
  it.byId("camera-start").click();
  assert.match(it.notice(), /127\.0\.0\.1/);
});

test("a full server is told, and forgotten once it answers", { skip }, async () => {
  const it = await open();
  it.byId("show-camera").click();
  Object.assign(it.byId("video"), { videoWidth: 256, videoHeight: 256 });
  it.document.drawing = uri(SCENES[0]);
  it.byId("camera-size").value = "128";
  const { fetch } = globalThis;
  const error = { message: "The server is full." };
  const bodies = [];
  globalThis.fetch = async (_, { body }) => {
    bodies.push(JSON.parse(body));
    return full();
  };
  const full = () => Response.json({ error }, { status: 429, headers: { "Retry-After": "0" } });
  const frame = () => it.document.frames.splice(0).forEach((callback) => callback());
  try {
    it.byId("camera-start").click();
    await until(() => frame() ?? it.notice() !== "");
    assert.equal(it.notice(), "The server is full. The camera goes on then.");
    assert.equal(it.byId("camera-pause").textContent, "Pause");
    const { image_size: size, max_completion_tokens: tokens, messages, stream } = bodies[0];
    assert.deepEqual([size, tokens, messages.length, stream], [128, 100, 1, true]);
  } finally {
    globalThis.fetch = fetch;
  }
  await until(() => frame() ?? it.byId("caption").textContent !== "");
  await until(() => it.byId("camera-stats").textContent !== "");
  assert.equal(it.notice(), "");
  it.byId("camera-start").click();
});
