// The page in document.mjs's stand-in for a browser, before a real server with the demo: FASTVLM_URL, and
// FASTVLM_LOCKED_URL of one that wants FASTVLM_API_KEY.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { register } from "node:module";

import { openPage } from "./document.mjs";

export const { FASTVLM_URL: SERVER, FASTVLM_LOCKED_URL: LOCKED, FASTVLM_API_KEY: KEY } = process.env;
export const skip = SERVER === undefined && "needs a server: FASTVLM_URL";
export const SCENES = [1, 2].map((i) => readFileSync(new URL(`../../../examples/images/shapes-${i}.png`, import.meta.url)));
export const uri = (bytes) => `data:image/png;base64,${bytes.toString("base64")}`;

let opened = 0;

/** A fresh page, whose modules run anew. */
export async function open(url = SERVER, options = {}) {
  const it = openPage(url, options);
  opened += 1;
  if (opened === 1) register(FRESH);
  await import(`../../../mlx_fastvlm/server/page/app.js?${opened}`);
  it.byId = (id) => it.document.getElementById(id);
  it.texts = () => it.byId("messages").children.map((item) => item.textContent);
  it.notice = () => it.byId("notice").textContent;
  it.ask = async (text) => {
    it.byId("prompt").value = text;
    it.byId("send").click();
    await until(() => !it.byId("send").hidden);
  };
  it.attach = async (...files) => {
    const before = it.byId("thumbnails").children.length;
    it.document.dispatch("paste", { clipboardData: { files } });
    await until(() => it.byId("thumbnails").children.length === before + files.length || it.notice() !== "");
  };
  it.scene = (i = 0, name = "scene.png", type = "image/png") => new File([SCENES[i]], name, { type });
  await until(() => it.byId("model").textContent !== "" || it.notice() !== "");
  return it;
}

// A module is run once for each address, so those that app.js imports get its number too.
const FRESH = `data:text/javascript,${encodeURIComponent(`
  export async function resolve(specifier, context, next) {
    const found = await next(specifier, context);
    const number = new URL(context.parentURL ?? "file:///").search;
    return found.url.includes("/page/") && number ? { ...found, url: found.url.split("?")[0] + number } : found;
  }`)}`;

/** While `run` runs, the server answers with `text`, and ends the answer only where `whole`. Returns what it was asked. */
export async function answering(text, run, { whole = false } = {}) {
  const { fetch } = globalThis;
  const bodies = [];
  const event = (data) => new TextEncoder().encode(`data: ${data}\n\n`);
  globalThis.fetch = async (_, { body, signal }) => {
    bodies.push(JSON.parse(body));
    const start = (controller) => {
      controller.enqueue(event(JSON.stringify({ choices: [{ delta: { content: text } }] })));
      signal.addEventListener("abort", () => controller.error(signal.reason));
      if (whole) controller.enqueue(event("[DONE]"));
    };
    return new Response(new ReadableStream({ start }));
  };
  try {
    await run();
  } finally {
    globalThis.fetch = fetch;
  }
  return bodies;
}

export async function until(condition) {
  for (let i = 0; i < 6000; i += 1) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  assert.fail(`did not happen: ${condition}`);
}
