// The chat: questions with images, answers as they come.

import { Answer } from "./answer.js";
import { Attachments } from "./attachments.js";
import { Conversation, streamed } from "./conversation.js";
import { byId } from "./dom.js";
import { Exchange } from "./exchange.js";
import { ENOUGH, drawShapes } from "./shapes.js";

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
    this.#attachments = new Attachments({
      notify: (message) => page.notify(message),
      accepts: () => !byId("chat").hidden && !page.dialogOpen(),
      added: () => this.#prompt.focus(),
    });
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
      if (event.key === "Escape" && !page.dialogOpen()) this.stop();
    });
    byId("stop").addEventListener("click", () => this.stop());
    byId("clear").addEventListener("click", () => this.#clear());
    byId("draw-shapes").addEventListener("click", () => this.#drawShapes());
  }

  stop() {
    this.#controller?.abort();
  }

  async #drawShapes() {
    this.#attachments.add([await drawShapes(ENOUGH)]);
    if (this.#prompt.value === "") this.#prompt.value = this.#page.firstQuestion();
  }

  #clear() {
    this.stop();
    this.#conversation = new Conversation(); // an answer that still comes belongs to the old one
    this.#messages.replaceChildren();
    this.#showWelcome(true);
    this.#page.notify("");
    this.#prompt.focus();
  }

  #showWelcome(shown) {
    byId("welcome").hidden = !shown;
    byId("clear").hidden = shown;
  }

  async #send() {
    if (this.#controller !== null) return;
    this.#page.notify("");
    const text = this.#prompt.value.trim();
    this.#setBusy(new AbortController());
    try {
      if (text === "") {
        this.#prompt.focus();
        throw new Error("Write a question first.");
      }
      const settings = this.#page.settings();
      const question = { text, images: await this.#attachments.take() };
      this.#prompt.value = "";
      await this.#ask(question, settings);
    } catch (error) {
      this.#page.tell(error);
    } finally {
      this.#setBusy(null);
    }
  }

  async #ask(question, settings) {
    const { server, announce } = this.#page;
    const conversation = this.#conversation;
    const body = conversation.body(question, settings, server.model);
    const shown = new Exchange(question);
    this.#showWelcome(false);
    shown.showIn(this.#messages);
    const { signal } = this.#controller;
    const answer = new Answer(() => performance.now());
    let problem = null;
    try {
      await answer.read(server.chunks(streamed(body), signal), () => shown.update(answer));
    } catch (error) {
      problem = signal.aborted ? "Stopped." : error.message;
      if (error.status === 401) this.#page.tell(error);
    }
    if (answer.model !== null) this.#page.met(answer.model);
    if (answer.text !== "" && (problem === null || signal.aborted)) conversation.add(question, answer.text);
    else if (problem !== null && conversation === this.#conversation) this.#putBack(question);
    shown.finish(answer, problem, settings.schema !== undefined);
    shown.offer("Copy as curl", () => this.#page.showSnippet("curl", body));
    shown.offer("Copy as Python", () => this.#page.showSnippet("Python", body));
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
