// The camera: a caption for what it sees, again and again.

import { Answer } from "./answer.js";
import { drawn } from "./attachments.js";
import { singleBody, streamed } from "./conversation.js";
import { cameraOf, cameras, openCamera, release } from "./devices.js";
import { byId, element } from "./dom.js";
import { FrameLoop } from "./frames.js";
import { fitted } from "./images.js";
import { duration } from "./stats.js";

const LARGEST = 1024; // side of a frame where the model's own size is asked for
const MAX_TOKENS = 100; // of a caption, unless the settings say otherwise
const SAY_EVERY = 5000; // milliseconds: a screen reader can't read each caption

export class Camera {
  #page;
  #video = byId("video");
  #canvas = document.createElement("canvas");
  #start = byId("camera-start");
  #pause = byId("camera-pause");
  #size = byId("camera-size");
  #choice = byId("camera-device");
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
    this.#start.addEventListener("click", () => (this.#wanted ? this.close() : this.#open("")));
    this.#pause.addEventListener("click", () => this.#setRunning(!this.#loop.running));
    this.#size.addEventListener("input", () => this.#showSize());
    this.#choice.addEventListener("change", () => {
      this.close();
      this.#open(this.#choice.value);
    });
    this.#showSize();
  }

  /** Let go of the camera. */
  close() {
    this.#wanted = false;
    this.#loop.pause();
    release(this.#stream);
    this.#stream = null;
    this.#video.srcObject = null;
    byId("caption").textContent = "";
    this.#showState();
  }

  async #open(id) {
    this.#page.notify("");
    this.#wanted = true;
    this.#start.disabled = true; // until the browser has answered
    try {
      await this.#show(await openCamera(id));
    } catch (error) {
      const closed = !this.#wanted;
      this.close();
      if (!closed) this.#page.notify(error.message);
    } finally {
      this.#start.disabled = false;
    }
  }

  async #show(stream) {
    if (!this.#wanted) return release(stream); // closed while the browser asked
    this.#stream = stream;
    for (const track of stream.getTracks()) track.addEventListener("ended", () => this.#lost(stream));
    this.#video.srcObject = stream;
    await this.#video.play();
    await this.#offerCameras(stream);
    if (this.#stream !== stream) return; // closed meanwhile
    this.#setRunning(true);
    this.#watch(stream);
  }

  #lost(stream) {
    if (this.#stream !== stream) return;
    this.close();
    this.#page.notify("The camera was disconnected. Connect it and start it again.");
  }

  async #offerCameras(stream) {
    const found = await cameras();
    const options = found.map(({ id, name }) => element("option", { value: id, textContent: name }));
    this.#choice.replaceChildren(...options);
    this.#choice.value = cameraOf(stream);
    byId("camera-choice").hidden = found.length < 2;
  }

  #setRunning(running) {
    if (running) {
      this.#page.notify("");
      this.#loop.start();
    } else {
      this.#loop.pause();
    }
    this.#showState();
  }

  #showState() {
    const [open, running] = [this.#stream !== null, this.#loop.running];
    byId("camera").classList.toggle("closed", !open);
    this.#start.textContent = open ? "Stop camera" : "Start camera";
    this.#start.classList.toggle("main", !open);
    this.#pause.hidden = !open;
    this.#pause.textContent = running ? "Pause" : "Resume";
    const state = byId("camera-state");
    state.hidden = !open;
    state.textContent = running ? "Live" : "Paused";
    state.classList.toggle("live", running);
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
    if (answer.model !== null) this.#page.met(answer.model);
    byId("caption").textContent = answer.text;
    this.#page.notify("");
    this.#showFigures(answer.stats);
    this.#say(answer.text);
  }

  #failed(error, paused) {
    if (paused) this.#setRunning(false);
    this.#page.tell(error, paused ? error.message : `${error.message} The camera goes on then.`);
  }

  #showFigures({ firstToken, rate }) {
    const ofLoop = this.#loop.rate.perSecond;
    if (ofLoop !== null) byId("camera-rate").textContent = ofLoop.toFixed(1);
    if (firstToken !== null) byId("camera-first").textContent = duration(firstToken);
    if (rate !== null) byId("camera-tokens").textContent = rate.toFixed(1);
  }

  #say(text) {
    if (performance.now() - this.#saidAt < SAY_EVERY) return;
    this.#saidAt = performance.now();
    this.#page.announce(text);
  }

  /** Side in pixels, or undefined for the model's own, which is the slider's end. */
  get #imageSize() {
    return this.#size.value === this.#size.max ? undefined : Number(this.#size.value);
  }

  #showSize() {
    const shown = this.#imageSize === undefined ? "the model's own" : `${this.#imageSize} pixels`;
    byId("camera-size-shown").textContent = shown;
    this.#size.setAttribute("aria-valuetext", shown);
  }
}
