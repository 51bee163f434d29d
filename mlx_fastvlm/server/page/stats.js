// How fast answers come. Times are in milliseconds, as performance.now() gives them.

// Pieces that come closer together than this, in milliseconds, were read from the connection at once: how long each took
// to be made can't be told from when they came.
const AT_ONCE = 1;
const FEW = 4; // tokens whose times tell nothing about the next ones

/** One answer. */
export class AnswerStats {
  #start;
  #first = null;
  #last = null;
  #end = null;
  #pieces = 0;
  #untimed = 0; // pieces that came at once with the first
  #tokens = null;

  constructor(start) {
    this.#start = start;
  }

  /** A piece of text came. */
  piece(now) {
    this.#first ??= now;
    if (this.#untimed === this.#pieces && now - (this.#last ?? now) < AT_ONCE) this.#untimed += 1;
    this.#last = this.#end = now;
    this.#pieces += 1;
  }

  /** The answer has ended, and the server told how many tokens it has: the last of them has no text. */
  counted(tokens, now) {
    this.#tokens = tokens;
    this.#end = now;
  }

  /** Seconds from the request to the first text, or null. */
  get firstToken() {
    return this.#first === null ? null : (this.#first - this.#start) / 1000;
  }

  /** How many there are, and whether the server told so; pieces of text are counted until it does. */
  get tokens() {
    return { count: this.#tokens ?? this.#pieces, exact: this.#tokens !== null };
  }

  /** Tokens a second after the first, or null where they are few, or all came at once. */
  get rate() {
    const timed = this.tokens.count - this.#untimed;
    if (this.#untimed === this.#pieces || timed < FEW) return null;
    return (timed * 1000) / (this.#end - this.#first);
  }

  /** For people: "first token after 120 ms · 45.6 tokens/s · 23 tokens". */
  toString() {
    if (this.firstToken === null) return "";
    const { count, exact } = this.tokens;
    const about = exact ? "" : "about ";
    const parts = [`first token after ${duration(this.firstToken)}`];
    if (this.rate !== null) parts.push(`${about}${this.rate.toFixed(1)} tokens/s`);
    parts.push(`${about}${count} ${count === 1 ? "token" : "tokens"}`);
    return parts.join(" · ");
  }
}

/** How often something happens: over the last few times. */
export class Rate {
  #times = [];
  #size;

  /** @param {number} size how many times are looked at */
  constructor(size = 8) {
    this.#size = size;
  }

  note(now) {
    this.#times.push(now);
    if (this.#times.length > this.#size) this.#times.shift();
  }

  clear() {
    this.#times = [];
  }

  /** Times a second, or null before the second one. */
  get perSecond() {
    const elapsed = this.#times.length < 2 ? 0 : this.#times.at(-1) - this.#times[0];
    return elapsed > 0 ? ((this.#times.length - 1) * 1000) / elapsed : null;
  }
}

/** Seconds for people. */
export function duration(seconds) {
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(2)} s`;
}
