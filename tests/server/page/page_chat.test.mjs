// The chat, and what it has in common with the camera: settings, the key, notices.

import assert from "node:assert/strict";
import { test } from "node:test";

import { KEY, LOCKED, SCENES, answering, open, skip, until, uri } from "./harness.mjs";

const ENTER = { key: "Enter", shiftKey: false, isComposing: false, keyCode: 13 };

test("a question about an image, and another one", { skip }, async () => {
  const it = await open();
  assert.equal(it.byId("model").textContent, "demo");
  await it.attach(it.scene());
  assert.match(it.byId("thumbnails").textContent, /256 × 256/);
  it.byId("image-size").value = "256";
  await it.ask("Describe the image.");
  assert.equal(it.notice(), "");
  const [asked, answered] = it.texts();
  assert.match(asked, /Describe the image\./);
  assert.match(answered, /star.*first token after .*tokens.*Copy as curlCopy as Python/s);
  assert.match(it.byId("said").textContent, /star/); // a screen reader hears it once, whole
  assert.equal(it.byId("thumbnails").children.length, 0);
  assert.equal(it.byId("prompt").value, "");
  await it.ask("Tell me the color of the star.");
  assert.match(it.texts()[3], /[Bb]lue/); // of the image that is in the conversation
});

test("the snippets are those of the request", { skip }, async () => {
  const it = await open();
  await it.attach(it.scene());
  await it.ask("Describe the image.");
  const buttons = it.byId("messages").querySelectorAll("button");
  buttons[0].click();
  assert.ok(it.byId("snippet").open);
  assert.match(it.byId("snippet-text").value, /base64 < image-1\.png/);
  it.byId("snippet-copy").click();
  await until(() => it.byId("snippet-status").textContent === "Copied.");
  assert.equal(it.copied[0], it.byId("snippet-text").value);
  buttons[1].click();
  assert.match(it.byId("snippet-text").value, /from openai import OpenAI/);
  it.byId("snippet-close").click();
  assert.ok(!it.byId("snippet").open);
});

test("stop puts a question back that has no answer yet", { skip }, async () => {
  const it = await open();
  await it.attach(it.scene());
  it.byId("prompt").value = "Describe the image.";
  const composing = it.byId("prompt").dispatch("keydown", { ...ENTER, isComposing: true });
  const line = it.byId("prompt").dispatch("keydown", { ...ENTER, shiftKey: true });
  assert.ok(!composing.defaultPrevented && !line.defaultPrevented && it.texts().length === 0);
  const sent = it.byId("prompt").dispatch("keydown", { ...ENTER });
  assert.ok(sent.defaultPrevented);
  assert.ok(it.byId("send").hidden && !it.byId("stop").hidden);
  it.byId("prompt").value = "And another one?";
  it.byId("prompt").dispatch("keydown", { ...ENTER }); // while one is answered: nothing
  assert.equal(it.byId("prompt").value, "And another one?");
  it.byId("prompt").value = "";
  it.document.dispatch("keydown", { key: "Escape" });
  await until(() => it.byId("stop").hidden);
  assert.match(it.texts()[1], /Stopped\./);
  assert.equal(it.byId("prompt").value, "Describe the image.");
  assert.equal(it.byId("thumbnails").children.length, 1);
  it.byId("send").focus();
  it.byId("send").click(); // and again, to its end
  assert.equal(it.document.activeElement, it.byId("stop"));
  await until(() => !it.byId("send").hidden);
  assert.equal(it.document.activeElement, it.byId("send"));
  assert.match(it.texts()[3], /star/);
  it.byId("clear").click();
  assert.deepEqual(it.texts(), []);
});

test("stop keeps what has come, and it belongs to the conversation", { skip }, async () => {
  const it = await open();
  const bodies = await answering('{"text"', async () => {
    it.byId("prompt").value = "One?";
    it.byId("send").click();
    await until(() => it.texts()[1]?.includes('{"text"'));
    it.byId("stop").click();
    await until(() => !it.byId("send").hidden);
    assert.match(it.texts()[1], /^{"text"Stopped\.first token after .* about 1 token/);
    assert.equal(it.byId("prompt").value, "");
    it.byId("prompt").value = "Two?";
    it.byId("send").click();
    await until(() => it.texts()[3]?.includes('{"text"'));
    it.byId("stop").click();
    await until(() => !it.byId("send").hidden);
  });
  assert.deepEqual(bodies[1].messages, [
    { role: "user", content: "One?" },
    { role: "assistant", content: '{"text"' },
    { role: "user", content: "Two?" },
  ]);
});

test("what is wrong is told, and nothing is lost", { skip }, async () => {
  const it = await open();
  await it.ask("  ");
  assert.match(it.notice(), /Write a question/);
  it.byId("temperature").value = "warm";
  await it.ask("Hello.");
  assert.match(it.notice(), /temperature must be a number/);
  assert.equal(it.document.activeElement, it.byId("temperature"));
  assert.ok(it.byId("settings").open);
  assert.equal(it.byId("temperature").getAttribute("aria-invalid"), "true");
  assert.equal(it.byId("prompt").value, "Hello.");
  it.byId("temperature").value = "";
  it.byId("max-tokens").value = "1000000";
  await it.ask("Hello.");
  assert.match(it.texts()[1], /max_completion_tokens must be at most/); // the server's own words
  assert.equal(it.byId("prompt").value, "Hello.");
  it.byId("max-tokens").value = "2";
  await it.attach(it.scene());
  await it.ask("Describe the image.");
  assert.match(it.texts()[3], /The answer was cut/);
});

test("images that are too large, of another kind, or none", { skip }, async () => {
  const it = await open();
  it.document.drawing = uri(SCENES[0]);
  it.images.size = [4096, 1024];
  await it.attach(it.scene(0, "wide.png"), it.scene(0, "wide.webp", "image/webp"));
  assert.match(it.byId("thumbnails").textContent, /2048 × 512, scaled down/);
  assert.deepEqual(it.document.drawings.map(({ width, height, type }) => [width, height, type]), [
    [2048, 512, "image/png"],
    [2048, 512, "image/jpeg"],
  ]);
  it.byId("thumbnails").querySelectorAll("button")[0].click();
  assert.equal(it.byId("thumbnails").children.length, 1);
  it.images.unreadable = true;
  await it.attach(new File(["?"], "IMG_1.HEIC"));
  assert.match(it.notice(), /IMG_1.HEIC is HEIC/);
  assert.equal(it.byId("thumbnails").children.length, 1);
});

test("files are picked, and dropped anywhere", { skip }, async () => {
  const it = await open();
  it.byId("files").files = [it.scene(0, "picked.png")];
  it.byId("files").dispatch("change");
  await until(() => it.byId("thumbnails").children.length === 1);
  it.byId("thumbnails").querySelectorAll("button")[0].click();
  const dataTransfer = { types: ["Files"], files: [it.scene()] };
  assert.ok(it.document.dispatch("dragover", { dataTransfer }).defaultPrevented);
  assert.ok(it.document.body.classList.contains("dropping"));
  assert.ok(it.document.dispatch("drop", { dataTransfer }).defaultPrevented);
  assert.ok(!it.document.body.classList.contains("dropping"));
  await until(() => it.byId("thumbnails").children.length === 1);
  assert.ok(!it.document.dispatch("dragover", { dataTransfer: { types: ["text/plain"], files: [] } }).defaultPrevented);
});

test("a key is asked for, kept in the session, and never shown", { skip }, async () => {
  const it = await open(LOCKED);
  assert.match(it.notice(), /API key is missing/);
  assert.equal(it.document.activeElement, it.byId("api-key"));
  it.byId("api-key").value = KEY;
  it.byId("api-key").dispatch("change");
  await until(() => it.byId("model").textContent === "demo");
  assert.equal(it.notice(), "");
  assert.deepEqual([...it.stored.values()], [KEY]);
  await it.ask("Hello.");
  it.byId("messages").querySelectorAll("button").forEach((button) => {
    button.click();
    assert.match(it.byId("snippet-text").value, /FASTVLM_API_KEY/);
    assert.ok(!it.byId("snippet-text").value.includes(KEY));
  });
  const again = await open(LOCKED, { key: KEY });
  assert.equal(again.byId("model").textContent, "demo");
});

test("a schema goes to the server, and what is wrong with it is told in the server's words", { skip }, async () => {
  const it = await open();
  it.byId("schema").value = '{"type": "nonsense"}';
  await it.ask("Describe the image.");
  assert.match(it.texts()[1], /json_schema/);
  assert.equal(it.byId("prompt").value, "Describe the image.");
});

test("JSON that was asked for is shown as a table too", { skip }, async () => {
  const it = await open();
  const run = async () => {
    await it.ask("Describe the image.");
    it.byId("schema").value = '{"type": "object"}';
    await it.ask("Describe the image.");
  };
  const bodies = await answering('{"shape": "star", "count": 2}', run, { whole: true });
  const cells = it.byId("messages").querySelectorAll("td").map((cell) => cell.textContent);
  assert.deepEqual(cells, ["shape", "star", "count", "2"]); // of the second answer only
  assert.deepEqual(bodies.map((body) => body.response_format?.json_schema.schema), [undefined, { type: "object" }]);
});
