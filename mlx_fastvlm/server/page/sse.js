// Server-sent events, as https://html.spec.whatwg.org/multipage/server-sent-events.html reads them. (EventSource can't
// send a body, so the page reads them itself.)

/** Text in pieces, split anywhere -> events. */
export class EventParser {
  #line = ""; // as far as it has come
  #data = [];
  #event = "";
  #started = false;
  #afterReturn = false; // a line feed that comes next belongs to the line end before it

  /** Returns the events that `text` completes: [{event, data}]. */
  push(text) {
    if (text === "") return [];
    if (!this.#started && text[0] === "\uFEFF") text = text.slice(1);
    this.#started = true;
    if (this.#afterReturn && text[0] === "\n") text = text.slice(1);
    this.#afterReturn = text === "" ? false : text.endsWith("\r");

    const lines = text.split(/\r\n|\r|\n/);
    lines[0] = this.#line + lines[0];
    this.#line = lines.pop();
    return lines.map((line) => this.#take(line)).filter((event) => event !== null);
  }

  /** A whole line; an empty one ends the event, if there is any. */
  #take(line) {
    if (line === "") return this.#end();
    const [, name, value] = line.match(/^([^:]*)(?:: ?)?(.*)$/s);
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#event = value;
    return null; // comments have no name; ids and times to retry mean nothing here
  }

  #end() {
    const event = this.#data.length ? { event: this.#event || "message", data: this.#data.join("\n") } : null;
    this.#data = [];
    this.#event = "";
    return event;
  }
}

/** The events of a response's body; leaving the loop closes the connection. */
export async function* readEvents(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
