// Which frames of the camera are asked about: the newest one, whenever the one before has been answered.

import { Rate } from "./stats.js";

/**
 * Never has more than one request under way. A frame that comes meanwhile is dropped, not kept: by the time it could be
 * asked about there is a newer one.
 */
export class FrameLoop {
  #capture;
  #ask;
  #failed;
  #now;
  #running = false;
  #busy = false;
  #controller = null;
  #waitUntil = -Infinity;

  /** Answers a second. */
  rate = new Rate();

  /**
   * @param {() => any} capture the frame that is there now, or null where there is none yet
   * @param {(frame: any, signal: AbortSignal) => Promise<void>} ask resolves once it is answered
   * @param {(error: Error, paused: boolean) => void} failed of a request; the loop pauses unless the error says when to
   *   come again (`retryAfter`, seconds)
   * @param {() => number} now milliseconds
   */
  constructor({ capture, ask, failed, now }) {
    this.#capture = capture;
    this.#ask = ask;
    this.#failed = failed;
    this.#now = now;
  }

  get running() {
    return this.#running;
  }

  start() {
    this.#running = true;
    this.#waitUntil = -Infinity;
    this.rate.clear();
  }

  /** The request that is under way is given up; until it has ended there is no other, even after another start. */
  pause() {
    this.#running = false;
    this.#controller?.abort();
  }

  /** There is a new frame. Returns a promise of the end of its request, or null where it was dropped. */
  offer() {
    if (!this.#running || this.#busy || this.#now() < this.#waitUntil) return null;
    const frame = this.#capture();
    return frame === null ? null : this.#request(frame);
  }

  async #request(frame) {
    const controller = new AbortController();
    this.#busy = true;
    this.#controller = controller;
    try {
      await this.#ask(frame, controller.signal);
      this.rate.note(this.#now());
    } catch (error) {
      if (!controller.signal.aborted) this.#fail(error);
    } finally {
      this.#busy = false;
    }
  }

  #fail(error) {
    if (error.retryAfter === undefined) this.#running = false;
    else this.#waitUntil = this.#now() + error.retryAfter * 1000;
    this.#failed(error, !this.#running);
  }
}
