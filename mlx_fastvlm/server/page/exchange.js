// A question and its answer, in the document.

import { element } from "./dom.js";
import { following, toEnd } from "./follow.js";
import { toTable } from "./table.js";

export class Exchange {
  #text = element("div", { className: "text" });
  #stats = element("span", { className: "quiet waiting", textContent: "Waiting for the first token" });
  #buttons = element("span", { className: "buttons" });
  #about = element("div", { className: "about" }, this.#stats, this.#buttons);
  #elements;
  #frame = null; // the browser's next one, in which what has come is shown

  constructor(question) {
    const images = question.images.map(({ url, name }) => element("img", { src: url, alt: name }));
    const asked = element("li", { className: "asked" }, element("div", { className: "text", textContent: question.text }));
    if (images.length > 0) asked.prepend(element("div", { className: "images" }, ...images));
    this.#elements = [asked, element("li", {}, this.#text, this.#about)];
  }

  /** At the end of this list, in view. */
  showIn(list) {
    list.append(...this.#elements);
    toEnd();
  }

  /** Soon: an answer can grow faster than it can be painted. */
  update(answer) {
    this.#frame ??= requestAnimationFrame(() => this.#show(answer));
  }

  #show(answer) {
    cancelAnimationFrame(this.#frame);
    this.#frame = null;
    following(() => {
      this.#text.textContent = answer.text;
      this.#stats.textContent = `${answer.stats}`;
      this.#stats.className = "quiet";
    });
  }

  finish(answer, problem, structured) {
    this.#show(answer);
    following(() => {
      if (problem !== null) this.#warn(problem);
      if (answer.finish === "length") this.#warn("The answer was cut off at the token limit.");
      const table = structured ? toTable(answer.text) : null;
      if (table === null) return;
      this.#text.after(tableElement(table));
      this.#text.className = "text code quiet"; // for whoever wants to copy it
    });
  }

  #warn(text) {
    this.#about.before(element("p", { className: "bad", textContent: text }));
  }

  /** A button below the answer. */
  offer(name, clicked) {
    const button = element("button", { type: "button", className: "plain", textContent: name });
    button.addEventListener("click", clicked);
    following(() => this.#buttons.append(button));
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
