import assert from "node:assert/strict";
import { test } from "node:test";

import { Conversation, readChunk, singleBody, streamed } from "../../../mlx_fastvlm/server/page/conversation.js";
import { FieldError, readSettings } from "../../../mlx_fastvlm/server/page/settings.js";

const EMPTY = { temperature: "", maxTokens: "", imageSize: "", seed: "", system: "", schema: "" };
const NONE = readSettings(EMPTY);
const IMAGE = { url: "data:image/png;base64,AAAA", name: "a.png", note: "1 × 1" };

test("nothing set: nothing said", () => {
  assert.deepEqual(singleBody({ text: "Hello.", images: [] }, NONE, null), {
    messages: [{ role: "user", content: "Hello." }],
  });
});

test("everything set", () => {
  const schema = { type: "object" };
  const texts = {
    temperature: "0,5",
    maxTokens: " 20 ",
    imageSize: "512",
    seed: "0",
    system: " Be brief. ",
    schema: JSON.stringify(schema),
  };
  const body = singleBody({ text: "What?", images: [IMAGE, IMAGE] }, readSettings(texts), "demo");
  const image = { type: "image_url", image_url: { url: IMAGE.url } };
  assert.deepEqual(body, {
    model: "demo",
    messages: [
      { role: "system", content: "Be brief." },
      { role: "user", content: [image, image, { type: "text", text: "What?" }] },
    ],
    temperature: 0.5,
    max_completion_tokens: 20,
    seed: 0,
    image_size: 512,
    response_format: { type: "json_schema", json_schema: { name: "answer", strict: true, schema } },
  });
});

test("a temperature of 0 is said; an image size without images is not", () => {
  const body = singleBody({ text: "Hello.", images: [] }, { ...NONE, temperature: 0, imageSize: 512 }, "demo");
  assert.equal(body.temperature, 0);
  assert.ok(!("image_size" in body));
});

test("what was answered comes first, with its images", () => {
  const conversation = new Conversation();
  conversation.add({ text: "One?", images: [IMAGE] }, "One.");
  const { messages } = conversation.body({ text: "Two?", images: [] }, { ...NONE, system: "Short." }, "demo");
  assert.deepEqual(
    messages.map(({ role }) => role),
    ["system", "user", "assistant", "user"],
  );
  assert.equal(messages[1].content[0].image_url.url, IMAGE.url);
  assert.equal(messages[2].content, "One.");
  assert.equal(messages[3].content, "Two?");
});

test("asking changes nothing", () => {
  const conversation = new Conversation();
  const question = { text: "One?", images: [] };
  assert.deepEqual(conversation.body(question, NONE, "demo"), conversation.body(question, NONE, "demo"));
  assert.equal(conversation.body(question, NONE, "demo").messages.length, 1);
});

test("a stream tells its usage", () => {
  assert.deepEqual(streamed({ model: "demo" }), {
    model: "demo",
    stream: true,
    stream_options: { include_usage: true },
  });
});

test("chunks of all kinds", () => {
  const nothing = { text: "", finish: undefined, tokens: undefined, model: undefined };
  assert.deepEqual(readChunk({}), nothing);
  assert.deepEqual(readChunk({ choices: [], usage: { completion_tokens: 3 } }), { ...nothing, tokens: 3 });
  assert.deepEqual(readChunk({ choices: [{ delta: { content: null }, finish_reason: null }] }), nothing);
  assert.deepEqual(readChunk({ model: "m", choices: [{ delta: {}, finish_reason: "stop" }] }), {
    ...nothing,
    finish: "stop",
    model: "m",
  });
});

test("what can't be read names its field", () => {
  const bad = {
    temperature: ["warm", "-1", "1e999", "0x"],
    maxTokens: ["0", "1.5", "1e3", "-4", "9".repeat(20)],
    imageSize: ["100", "32", "512 px"],
    seed: ["-1", "x"],
    schema: ["{", "[]", "7", "null", '"text"'],
  };
  for (const [field, texts] of Object.entries(bad)) {
    for (const text of texts) {
      assert.throws(
        () => readSettings({ ...EMPTY, [field]: text }),
        (error) => error instanceof FieldError && error.field === field && error.message.length > 10,
        `${field}: ${text}`,
      );
    }
  }
});
