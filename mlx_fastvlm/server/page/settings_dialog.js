// Where the settings are written, and what is told of them elsewhere.

import { byId, element } from "./dom.js";
import { FieldError, inForce, readSettings } from "./settings.js";

export class SettingsDialog {
  #dialog = byId("settings");
  /** By their names in settings.js. */
  #fields = {
    temperature: byId("temperature"),
    maxTokens: byId("max-tokens"),
    imageSize: byId("image-size"),
    seed: byId("seed"),
    system: byId("system"),
    schema: byId("schema"),
  };
  #problem = element("p", { id: "settings-problem", className: "bad" });

  /** @param {() => object} example gives a JSON schema to begin with */
  constructor(example) {
    byId("open-settings").addEventListener("click", () => this.open());
    byId("in-force").addEventListener("click", () => this.open());
    byId("schema-example").addEventListener("click", () => {
      this.#fields.schema.value = legible(example());
      this.#fields.schema.focus();
    });
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.#dialog.close(); // beside it
    });
    this.#dialog.addEventListener("close", () => this.#closed());
  }

  /** Open it, at a field where something is to be done about that one. */
  open(field = null, problem = "") {
    this.clear();
    if (!this.#dialog.open) this.#dialog.showModal();
    if (field === null) return;
    if (problem !== "") {
      this.#problem.textContent = problem;
      field.after(this.#problem);
      field.setAttribute("aria-invalid", "true");
      field.setAttribute("aria-errormessage", this.#problem.id);
    }
    field.focus();
  }

  /** The settings; a FieldError for what can't be read, after going there. */
  read() {
    try {
      return readSettings(this.#texts());
    } catch (error) {
      if (error instanceof FieldError) this.open(this.#fields[error.field], error.message);
      throw error;
    }
  }

  #texts() {
    return Object.fromEntries(Object.entries(this.#fields).map(([name, field]) => [name, field.value]));
  }

  /** Nothing is wrong any more. */
  clear() {
    for (const field of [...Object.values(this.#fields), byId("api-key")]) {
      field.removeAttribute("aria-invalid");
      field.removeAttribute("aria-errormessage");
    }
    this.#problem.remove();
  }

  #closed() {
    const told = inForce(this.#texts());
    byId("in-force").textContent = told;
    byId("in-force").hidden = told === "";
  }
}

/** JSON in lines, but each list in one. */
function legible(value) {
  return JSON.stringify(value, null, 2).replace(/\[[^\]]*\]/g, (list) => list.replace(/\s+/g, " "));
}
