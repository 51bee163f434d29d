// The camera: a caption for what it sees, again and again.

import { Answer } from "./answer.js";
import { drawn } from "./attachments.js";
import { singleBody, streamed } from "./conversation.js";
import { byId } from "./dom.js";
import { FrameLoop } from "./frames.js";
import { fitted } from "./images.js";

const LARGEST = 1024; // side of a frame where the model's own size is asked for
const MAX_TOKENS = 100; // of a caption, unless the settings say otherwise
const WANTED = { facingMode: { ideal: "environment" }, width: { ideal: 1280 } };
const SAY_EVERY = 5000; // milliseconds: a screen reader can't read each caption

export class Camera {
  #page;
  #video = byId("video");
  #canvas = document.createElement("canvas");
  #start = byId("camera-start");
  #pause = byId("camera-pause");
  #size = byId("camera-size");
  #wanted = false; // whether the camera shall be open
  #stream = null;
  #saidAt = -Infinity;
  #loop;

  /** @param {object} page app.js: its server, settings and ways to tell something */
  constructor(page) {
    this.#page = page;
    this.#loop = new FrameLoop({
      capture: () => this.#capture(),
      ask: (frame, signal) => this.#ask(frame, signal),
      failed: (error, paused) => this.#failed(error, paused),
      now: () => performance.now(),
    });
    byId("camera-form").addEventListener("submit", (event) => event.preventDefault());
    this.#start.addEventListener("click", () => (this.#wanted ? this.close() : this.#open()));
    this.#pause.addEventListener("click", () => this.#setRunning(!this.#loop.running));
    this.#size.addEventListener("input", () => this.#showSize());
    this.#showSize();
  }

  /** Let go of the camera. */
  close() {
    this.#wanted = false;
    this.#setRunning(false);
    release(this.#stream);
    this.#stream = null;
    this.#video.srcObject = null;
    this.#start.textContent = "Start camera";
    this.#pause.disabled = true;
    this.#pause.textContent = "Pause";
  }

  async #open() {
    this.#page.notify("");
    if (!navigator.mediaDevices) {
      this.#page.notify("Browsers give the camera only to pages of this machine (http://127.0.0.1) or over HTTPS.");
      return;
    }
    this.#wanted = true;
    this.#start.disabled = true; // until the browser has answered
    try {
      await this.#show(await navigator.mediaDevices.getUserMedia({ video: WANTED, audio: false }));
    } catch (error) {
      const closed = !this.#wanted;
      this.close();
      if (!closed) this.#page.notify(`The camera can't be used (${error.name}). Allow it for this page in the browser.`);
    } finally {
      this.#start.disabled = false;
    }
  }

  async #show(stream) {
    if (!this.#wanted) return release(stream); // closed while the browser asked
    this.#stream = stream;
    for (const track of stream.getTracks()) track.addEventListener("ended", () => this.close());
    this.#video.srcObject = stream;
    await this.#video.play();
    this.#start.textContent = "Stop camera";
    this.#pause.disabled = false;
    this.#setRunning(true);
    this.#watch(stream);
  }

  #setRunning(running) {
    if (running) {
      this.#page.notify("");
      this.#loop.start();
    } else {
      this.#loop.pause();
    }
    this.#pause.textContent = running ? "Pause" : "Resume";
  }

  /** Offer each new frame, as long as this stream is shown. */
  #watch(stream) {
    if (this.#stream !== stream) return;
    this.#loop.offer();
    const next = () => this.#watch(stream);
    if (this.#video.requestVideoFrameCallback) this.#video.requestVideoFrameCallback(next);
    else requestAnimationFrame(next);
  }

  #capture() {
    const { videoWidth, videoHeight } = this.#video;
    if (videoWidth === 0 || videoHeight === 0) return null;
    const size = fitted(videoWidth, videoHeight, this.#imageSize ?? LARGEST);
    return { url: drawn(this.#video, size, "image/jpeg", this.#canvas) };
  }

  async #ask(frame, signal) {
    const { server } = this.#page;
    const given = this.#page.settings();
    const settings = {
      ...given,
      schema: undefined,
      maxTokens: given.maxTokens ?? MAX_TOKENS,
      imageSize: this.#imageSize,
    };
    const text = byId("camera-prompt").value.trim();
    if (text === "") throw new Error("Write a question about the frames first.");
    const body = singleBody({ text, images: [frame] }, settings, server.model);
    const answer = new Answer(() => performance.now());
    await answer.read(server.chunks(streamed(body), signal), () => {
      byId("caption").textContent = answer.text;
    });
    server.model ??= answer.model;
    byId("caption").textContent = answer.text;
    this.#page.notify("");
    this.#showStats(answer);
    this.#say(answer.text);
  }

  #failed(error, paused) {
    if (paused) this.#setRunning(false);
    this.#page.failed(error);
    this.#page.notify(paused ? error.message : `${error.message} The camera goes on then.`);
  }

  #showStats(answer) {
    const rate = this.#loop.rate.perSecond;
    const frames = rate === null ? "" : `${rate.toFixed(1)} frames/s · `;
    byId("camera-stats").textContent = `${frames}${answer.stats}`;
  }

  #say(text) {
    if (performance.now() - this.#saidAt < SAY_EVERY) return;
    this.#saidAt = performance.now();
    this.#page.announce(text);
  }

  /** Side in pixels, or undefined for the model's own. */
  get #imageSize() {
    return Number(this.#size.value) || undefined;
  }

  #showSize() {
    const shown = this.#imageSize === undefined ? "the model's own" : `${this.#imageSize} pixels`;
    byId("camera-size-shown").textContent = shown;
    this.#size.setAttribute("aria-valuetext", shown);
  }
}

function release(stream) {
  for (const track of stream?.getTracks() ?? []) track.stop();
}
