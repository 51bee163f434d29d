// One answer, as it comes.

import { readChunk } from "./conversation.js";
import { AnswerStats } from "./stats.js";

export class Answer {
  #now;

  /** What has come so far, also where reading ended with an error. */
  text = "";
  /** Why the answer ended ("stop", "length"), or null. */
  finish = null;
  /** The id of the model that answers, or null. */
  model = null;

  /** @param {() => number} now milliseconds; the request is sent now */
  constructor(now) {
    this.#now = now;
    this.stats = new AnswerStats(now());
  }

  /**
   * Read it to its end; rejects as `chunks` do.
   *
   * @param {AsyncIterable<object>} chunks of a stream
   * @param {() => void} changed called after each piece of text
   */
  async read(chunks, changed) {
    for await (const chunk of chunks) {
      const { text, finish, tokens, model } = readChunk(chunk);
      this.model ??= model ?? null;
      this.finish ??= finish ?? null;
      if (tokens !== undefined) this.stats.counted(tokens, this.#now());
      if (text !== "") {
        this.text += text;
        this.stats.piece(this.#now());
        changed();
      }
    }
  }
}
