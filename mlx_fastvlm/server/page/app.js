// The page: its server, its settings and its two views.

import { chatChunks, servedModel } from "./api.js";
import { Camera } from "./camera.js";
import { Chat } from "./chat.js";
import { byId } from "./dom.js";
import { FieldError, readSettings } from "./settings.js";
import { SnippetDialog } from "./snippet_dialog.js";

const KEY = "fastvlm-api-key"; // in sessionStorage, which ends with the tab

/** Fields of the settings, by their names in settings.js. */
const FIELDS = {
  temperature: byId("temperature"),
  maxTokens: byId("max-tokens"),
  imageSize: byId("image-size"),
  seed: byId("seed"),
  system: byId("system"),
  schema: byId("schema"),
};
const key = byId("api-key");

const server = {
  base: new URL("v1/", document.baseURI).href,
  /** The model's id; null until it is known. */
  model: null,
  chunks(body, signal) {
    return chatChunks(body, { base: this.base, key: key.value, signal });
  },
};

const snippets = new SnippetDialog();

/** What the views have in common. */
const page = {
  server,

  /** The settings; a FieldError for what can't be read, after going there. */
  settings() {
    for (const field of Object.values(FIELDS)) field.removeAttribute("aria-invalid");
    try {
      return readSettings(Object.fromEntries(Object.entries(FIELDS).map(([name, field]) => [name, field.value])));
    } catch (error) {
      if (error instanceof FieldError) {
        FIELDS[error.field].setAttribute("aria-invalid", "true");
        openSettings(FIELDS[error.field]);
      }
      throw error;
    }
  },

  /** Tell what is wrong; "" for nothing. */
  notify(message) {
    byId("notice").textContent = message;
  },

  /** Let a screen reader say it. */
  announce(text) {
    byId("said").textContent = text;
  },

  /** A request failed: where only the key is missing, go there. */
  failed(error) {
    if (error.status === 401) openSettings(key);
  },

  showSnippet(kind, body) {
    snippets.show(kind, body, { base: server.base, key: key.value !== "" });
  },
};

const chat = new Chat(page);
const camera = new Camera(page);

function openSettings(field) {
  byId("settings").open = true;
  field.focus();
}

function show(view) {
  for (const name of ["chat", "camera"]) {
    byId(name).hidden = name !== view;
    byId(`show-${name}`).setAttribute("aria-pressed", String(name === view));
  }
  page.notify("");
  if (view !== "chat") chat.stop();
  if (view !== "camera") camera.close();
}

async function connect() {
  try {
    server.model = await servedModel({ base: server.base, key: key.value });
    byId("model").textContent = server.model;
    page.notify("");
  } catch (error) {
    page.failed(error);
    page.notify(error.message);
  }
}

/** The stored key, or "" where browsers forbid to store any. */
function storedKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

function storeKey() {
  try {
    if (key.value === "") sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, key.value);
  } catch {
    // then it lasts as long as the page is shown
  }
}

byId("show-chat").addEventListener("click", () => show("chat"));
byId("show-camera").addEventListener("click", () => show("camera"));
for (const [form, prompt] of [["question", "prompt"], ["camera-form", "camera-prompt"]]) {
  for (const preset of byId(form).querySelectorAll("button[value]")) {
    preset.addEventListener("click", () => {
      byId(prompt).value = preset.value;
      byId(prompt).focus();
    });
  }
}
key.value = storedKey();
key.addEventListener("change", () => {
  storeKey();
  connect();
});
connect();
