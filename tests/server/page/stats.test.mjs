import assert from "node:assert/strict";
import { test } from "node:test";

import { drawnType, fitted, isSentAsItIs, unreadable } from "../../../mlx_fastvlm/server/page/images.js";
import { inForce } from "../../../mlx_fastvlm/server/page/settings.js";
import { AnswerStats, Rate, duration } from "../../../mlx_fastvlm/server/page/stats.js";
import { toTable } from "../../../mlx_fastvlm/server/page/table.js";

test("time to the first token, and tokens a second after it", () => {
  const stats = new AnswerStats(1000);
  assert.deepEqual([stats.firstToken, stats.rate, `${stats}`], [null, null, ""]);
  stats.piece(1120);
  assert.equal(`${stats}`, "first token after 120 ms · about 1 token");
  for (const time of [1620, 2120, 2620]) stats.piece(time);
  assert.equal(`${stats}`, "first token after 120 ms · about 4 tokens"); // too few to tell
  stats.piece(3120);
  assert.equal(`${stats}`, "first token after 120 ms · about 2.0 tokens/s · about 5 tokens");
  stats.counted(11, 3620);
  assert.equal(`${stats}`, "first token after 120 ms · 4.0 tokens/s · 11 tokens");
});

test("an answer that came at once has no rate", () => {
  const stats = new AnswerStats(0);
  stats.piece(5);
  stats.piece(5);
  stats.counted(9, 500);
  assert.equal(stats.rate, null);
  assert.equal(`${stats}`, "first token after 5 ms · 9 tokens");
});

test("what was read at once with the first is not timed", () => {
  const stats = new AnswerStats(0);
  for (const time of [100, 100.2, 100.4, 600, 600.1, 800, 1100]) stats.piece(time);
  assert.equal(stats.rate, 4); // four pieces in a second, after the first three
});

test("the rate is that of the last times", () => {
  const rate = new Rate(3);
  assert.equal(rate.perSecond, null);
  for (const time of [0, 10000, 10500, 11000]) rate.note(time);
  assert.equal(rate.perSecond, 2);
});

test("settings that are given are told", () => {
  const none = { temperature: "", maxTokens: "", imageSize: "", seed: "", system: " ", schema: "" };
  assert.equal(inForce(none), "");
  assert.equal(inForce({ ...none, temperature: "0.7 ", schema: "{}", seed: "3" }), "JSON schema · temperature 0.7 · seed 3");
});

test("durations", () => {
  assert.deepEqual([0.0004, 0.25, 0.9994, 1, 12.345].map(duration), ["0 ms", "250 ms", "999 ms", "1.00 s", "12.35 s"]);
});

test("images are scaled down, never up, and keep their proportions", () => {
  assert.deepEqual(fitted(4096, 2048, 2048), { width: 2048, height: 1024 });
  assert.deepEqual(fitted(3000, 4000, 2048), { width: 1536, height: 2048 });
  assert.deepEqual(fitted(100, 50, 2048), { width: 100, height: 50 });
  assert.deepEqual(fitted(100000, 1, 2048), { width: 2048, height: 1 });
});

test("which files are drawn again, and as what", () => {
  assert.ok(isSentAsItIs("image/jpeg", 2048, 100));
  assert.ok(!isSentAsItIs("image/jpeg", 2049, 100));
  assert.ok(!isSentAsItIs("image/heic", 100, 100));
  assert.ok(!isSentAsItIs("image/svg+xml", 100, 100));
  assert.deepEqual(["image/png", "image/heic", ""].map(drawnType), ["image/png", "image/jpeg", "image/jpeg"]);
});

test("HEIC is told plainly", () => {
  for (const [name, type] of [["IMG_1.HEIC", ""], ["x", "image/heif"], ["IMG_2.heif", "application/octet-stream"]]) {
    assert.match(unreadable(name, type), new RegExp(`^${name} is HEIC.*JPEG`));
  }
  assert.match(unreadable("notes.pdf", "application/pdf"), /^notes.pdf is no image/);
});

test("tables", () => {
  assert.deepEqual(toTable('{"a": "x", "b": [1, {"c": null}], "d": true}'), {
    head: ["name", "value"],
    rows: [["a", "x"], ["b", '[1,{"c":null}]'], ["d", "true"]],
  });
  assert.deepEqual(toTable('[{"a": 1}, {"b": "y", "a": 2}, {"toString": 3}]'), {
    head: ["a", "b", "toString"],
    rows: [["1", "", ""], ["2", "y", ""], ["", "", "3"]],
  });
  assert.deepEqual(toTable('["x", [2]]'), { head: ["#", "value"], rows: [["1", "x"], ["2", "[2]"]] });
  assert.deepEqual(toTable("[]"), { head: ["#", "value"], rows: [] });
  for (const text of ["", "A star.", "7", '"x"', "null", '{"a": ']) assert.equal(toTable(text), null, text);
});
