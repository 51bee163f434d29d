// The chat: questions with images, answers as they come.

import { Answer } from "./answer.js";
import { Attachments } from "./attachments.js";
import { Conversation, streamed } from "./conversation.js";
import { byId, element } from "./dom.js";
import { toTable } from "./table.js";

export class Chat {
  #page;
  #attachments;
  #conversation = new Conversation();
  #prompt = byId("prompt");
  #messages = byId("messages");
  #controller = null; // of the answer that is coming

  /** @param {object} page app.js: its server, settings and ways to tell something */
  constructor(page) {
    this.#page = page;
    this.#attachments = new Attachments((message) => page.notify(message));
    byId("question").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.#prompt.addEventListener("keydown", (event) => {
      // 229: Safari's word for a key that belongs to an input method
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
      event.preventDefault();
      this.#send();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.stop();
    });
    byId("stop").addEventListener("click", () => this.stop());
    byId("clear").addEventListener("click", () => this.#clear());
  }

  stop() {
    this.#controller?.abort();
  }

  #clear() {
    this.stop();
    this.#conversation = new Conversation(); // an answer that still comes belongs to the old one
    this.#messages.replaceChildren();
    this.#page.notify("");
    this.#prompt.focus();
  }

  async #send() {
    if (this.#controller !== null) return;
    this.#page.notify("");
    const text = this.#prompt.value.trim();
    this.#setBusy(new AbortController());
    try {
      if (text === "") throw new Error("Write a question first.");
      const settings = this.#page.settings();
      const question = { text, images: await this.#attachments.take() };
      this.#prompt.value = "";
      await this.#ask(question, settings);
    } catch (error) {
      this.#page.notify(error.message);
    } finally {
      this.#setBusy(null);
    }
  }

  async #ask(question, settings) {
    const { server, announce } = this.#page;
    const conversation = this.#conversation;
    const body = conversation.body(question, settings, server.model);
    const shown = new Shown(question);
    this.#messages.append(...shown.elements);
    shown.reveal();
    const { signal } = this.#controller;
    const answer = new Answer(() => performance.now());
    let problem = null;
    try {
      await answer.read(server.chunks(streamed(body), signal), () => shown.update(answer));
    } catch (error) {
      problem = signal.aborted ? "Stopped." : error.message;
      if (!signal.aborted) this.#page.failed(error);
    }
    server.model ??= answer.model;
    if (answer.text !== "" && (problem === null || signal.aborted)) conversation.add(question, answer.text);
    else if (problem !== null && conversation === this.#conversation) this.#putBack(question);
    shown.finish(answer, problem, settings.schema !== undefined);
    shown.offer("curl", () => this.#page.showSnippet("curl", body));
    shown.offer("Python", () => this.#page.showSnippet("Python", body));
    announce(problem === null ? answer.text : `${answer.text} ${problem}`);
  }

  /** A question that was not answered can be changed and sent again. */
  #putBack(question) {
    this.#attachments.putBack(question.images);
    if (this.#prompt.value === "") this.#prompt.value = question.text;
  }

  /** While an answer comes there is Stop in the place of Send, and the keyboard's focus goes along. */
  #setBusy(controller) {
    this.#controller = controller;
    const [send, stop] = [byId("send"), byId("stop")];
    const focused = document.activeElement;
    send.hidden = controller !== null;
    stop.hidden = controller === null;
    if (focused === send) stop.focus();
    if (focused === stop) send.focus();
  }
}

/** A question and its answer, in the document. */
class Shown {
  #text = element("div", { className: "text" });
  #stats = element("p", { className: "quiet" });
  #buttons = element("p", { className: "buttons" });
  #answered;

  constructor(question) {
    const images = question.images.map(({ url, name }) => element("img", { src: url, alt: name }));
    const asked = element("li", { className: "asked" }, element("div", { className: "text", textContent: question.text }));
    if (images.length > 0) asked.prepend(element("div", { className: "images" }, ...images));
    this.#answered = element("li", {}, this.#text, this.#stats, this.#buttons);
    this.#stats.textContent = "Waiting for the first token";
    this.elements = [asked, this.#answered];
  }

  update(answer) {
    this.#text.textContent = answer.text;
    this.#stats.textContent = `${answer.stats}`;
  }

  /** Scroll to where the answer will be, once: who reads then scrolls by themselves. */
  reveal() {
    this.#answered.scrollIntoView({ block: "nearest" });
  }

  finish(answer, problem, structured) {
    this.#stats.textContent = `${answer.stats}`;
    if (problem !== null) this.#stats.before(element("p", { className: "bad", textContent: problem }));
    if (answer.finish === "length") {
      const cut = "The answer was cut: it has as many tokens as it may have.";
      this.#stats.before(element("p", { className: "bad", textContent: cut }));
    }
    const table = structured ? toTable(answer.text) : null;
    if (table !== null) this.#text.after(tableElement(table));
  }

  /** A button that shows the request in another form. */
  offer(name, clicked) {
    const button = element("button", { type: "button", textContent: `Copy as ${name}` });
    button.addEventListener("click", clicked);
    this.#buttons.append(button);
  }
}

function tableElement({ head, rows }) {
  const titles = head.map((text) => element("th", { scope: "col", textContent: text }));
  const lines = rows.map((row) => element("tr", {}, ...row.map((text) => element("td", { textContent: text }))));
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...titles)), element("tbody", {}, ...lines));
  const scrolling = element("div", { className: "scroll", tabIndex: 0 }, table); // with the keyboard too
  scrolling.setAttribute("role", "group");
  scrolling.setAttribute("aria-label", "The answer as a table");
  return scrolling;
}
