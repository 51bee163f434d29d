// Shows a request as a command or a program, to be copied.

import { byId } from "./dom.js";
import { curl, python } from "./snippets.js";

const FORMS = { curl, Python: python };

export class SnippetDialog {
  #dialog = byId("snippet");
  #text = byId("snippet-text");
  #status = byId("snippet-status");

  constructor() {
    byId("snippet-copy").addEventListener("click", () => this.#copy());
    byId("snippet-close").addEventListener("click", () => this.#dialog.close());
  }

  /** @param {"curl" | "Python"} kind */
  show(kind, body, options) {
    byId("snippet-title").textContent = `The request as ${kind}`;
    this.#text.value = FORMS[kind](body, options);
    this.#status.textContent = "";
    this.#dialog.showModal();
    byId("snippet-copy").focus();
  }

  async #copy() {
    this.#text.select();
    try {
      await navigator.clipboard.writeText(this.#text.value);
      this.#status.textContent = "Copied.";
    } catch {
      // browsers forbid it, or have no clipboard for pages over plain HTTP
      this.#status.textContent = "The text is selected: copy it with Ctrl+C or ⌘C.";
    }
  }
}
