// The page: its server, its settings and its two views.

import { chatChunks, servedModel } from "./api.js";
import { Camera } from "./camera.js";
import { Chat } from "./chat.js";
import { byId } from "./dom.js";
import { exampleSchema, isDemo, offerPresets, presetsOf } from "./presets.js";
import { FieldError } from "./settings.js";
import { SettingsDialog } from "./settings_dialog.js";
import { SnippetDialog } from "./snippet_dialog.js";

const KEY = "fastvlm-api-key"; // in sessionStorage, which ends with the tab

const key = byId("api-key");
const prompts = { presets: byId("prompt"), "camera-presets": byId("camera-prompt") };

const server = {
  base: new URL("v1/", document.baseURI).href,
  /** The model's id; null until it is known. */
  model: null,
  chunks(body, signal) {
    return chatChunks(body, { base: this.base, key: key.value, signal });
  },
};

const settings = new SettingsDialog(() => exampleSchema(server.model));
const snippets = new SnippetDialog();

/** What the views have in common. */
const page = {
  server,

  settings: () => settings.read(),

  /** The server told its model. */
  met(model) {
    if (server.model === model) return;
    const first = server.model === null;
    server.model = model;
    byId("model").textContent = model;
    byId("model").title = model;
    byId("model").hidden = false;
    byId("demo").hidden = !isDemo(model);
    for (const [group, field] of Object.entries(prompts)) offerPresets(presetsOf(model), group, field);
    if (first && prompts["camera-presets"].value === "") prompts["camera-presets"].value = page.firstQuestion();
  },

  firstQuestion: () => presetsOf(server.model)[0][1],

  dialogOpen: () => byId("settings").open || byId("snippet").open,

  /** Tell what is wrong; "" for nothing. */
  notify(message) {
    byId("notice").textContent = message;
  },

  /** Let a screen reader say it. */
  announce(text) {
    byId("said").textContent = text;
  },

  /** The same of an error: of a setting, or where only the key is missing, it is told there. */
  tell(error, message = error.message) {
    if (error.status === 401) settings.open(key, message);
    else if (!(error instanceof FieldError)) page.notify(message);
  },

  showSnippet(kind, body) {
    snippets.show(kind, body, { base: server.base, key: key.value !== "" });
  },
};

const chat = new Chat(page);
const camera = new Camera(page);

function show(view) {
  for (const name of ["chat", "camera"]) {
    byId(name).hidden = name !== view;
    byId(`show-${name}`).setAttribute("aria-pressed", String(name === view));
  }
  byId("question").hidden = view !== "chat";
  page.notify("");
  if (view !== "chat") chat.stop();
  if (view !== "camera") camera.close();
}

async function connect() {
  try {
    page.met(await servedModel({ base: server.base, key: key.value }));
    settings.clear();
    page.notify("");
  } catch (error) {
    page.tell(error);
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
key.value = storedKey();
key.addEventListener("change", () => {
  storeKey();
  connect();
});
connect();
