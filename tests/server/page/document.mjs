// A stand-in for what the page needs of a browser: its document, images, canvas, camera. It has only the names that the
// page uses, each as the standards have it, and refuses all others, so a misspelt one fails. It tells nothing about
// layout, style, the policy, real decoding or real cameras: those need a browser.

import { readFileSync } from "node:fs";

const PAGE = new URL("../../../mlx_fastvlm/server/page/", import.meta.url);
const VOID = ["meta", "link", "input", "img", "br"];
const OF_TAG = {
  button: { type: "submit", value: "", disabled: false },
  input: { type: "text", value: "", files: [] },
  textarea: { value: "" },
  img: { src: "", alt: "" },
  th: { scope: "" },
  details: { open: false },
  dialog: { open: false },
  canvas: { width: 300, height: 150 },
  video: { srcObject: null, videoWidth: 0, videoHeight: 0 },
};

/** An object that has only the names it has. */
function strict(object, name) {
  const check = (target, key) => {
    const asked = typeof key === "string" && key !== "then"; // `await` asks everything for its `then`
    if (asked && !(key in target)) throw new TypeError(`${name} has no ${key} here`);
  };
  return new Proxy(object, {
    get(target, key) {
      check(target, key);
      const value = Reflect.get(target, key);
      return typeof value === "function" ? value.bind(target) : value;
    },
    set(target, key, value) {
      check(target, key);
      return Reflect.set(target, key, value);
    },
  });
}

class Listening {
  listeners = {};

  addEventListener(type, listener) {
    (this.listeners[type] ??= []).push(listener);
  }

  /** For tests: returns the event. */
  dispatch(type, properties = {}) {
    const event = strict({ defaultPrevented: false, ...properties, preventDefault }, `the event ${type}`);
    function preventDefault() {
      event.defaultPrevented = true;
    }
    for (const listener of this.listeners[type] ?? []) listener(event);
    return event;
  }
}

class Element extends Listening {
  id = "";
  className = "";
  hidden = false;
  tabIndex = -1;
  attributes = {};
  children = []; // elements and strings
  parent = null;

  constructor(tag, document) {
    super();
    this.tag = tag;
    this.document = document;
    Object.assign(this, OF_TAG[tag]);
    this.self = strict(this, `<${tag}>`);
    const set = new Set();
    this.classList = { toggle: (name, on) => (on ? set.add(name) : set.delete(name)), contains: (name) => set.has(name) };
  }

  get textContent() {
    return this.children.map((child) => (typeof child === "string" ? child : child.textContent)).join("");
  }

  set textContent(text) {
    this.replaceChildren(...(text === "" ? [] : [String(text)]));
  }

  setAttribute(name, value) {
    this.attributes[name] = String(value);
  }

  getAttribute(name) {
    return this.attributes[name] ?? null;
  }

  removeAttribute(name) {
    delete this.attributes[name];
  }

  #insert(at, nodes) {
    for (const node of nodes) {
      if (typeof node === "string") continue;
      node.remove();
      node.parent = this.self;
    }
    this.children.splice(at, 0, ...nodes);
  }

  append(...nodes) {
    this.#insert(this.children.length, nodes);
  }

  prepend(...nodes) {
    this.#insert(0, nodes);
  }

  before(...nodes) {
    this.parent.insertAt(this.parent.children.indexOf(this.self), nodes);
  }

  after(...nodes) {
    this.parent.insertAt(this.parent.children.indexOf(this.self) + 1, nodes);
  }

  insertAt(at, nodes) {
    this.#insert(at, nodes);
  }

  /** What a textarea has from index.html. */
  setText(text) {
    this.value = text;
  }

  remove() {
    if (this.parent === null) return;
    this.parent.children.splice(this.parent.children.indexOf(this.self), 1);
    this.parent = null;
  }

  replaceChildren(...nodes) {
    for (const child of this.children) if (typeof child !== "string") child.parent = null;
    this.children = [];
    this.append(...nodes);
  }

  /** Of the form `tag` or `tag[attribute]`. */
  querySelectorAll(selector) {
    const [, tag, attribute] = selector.match(/^(\w+)(?:\[(\w+)\])?$/);
    const inner = this.children.filter((child) => typeof child !== "string");
    return inner.flatMap((child) => [
      ...(child.tag === tag && (!attribute || child.getAttribute(attribute) !== null) ? [child] : []),
      ...child.querySelectorAll(selector),
    ]);
  }

  focus() {
    if (!this.hidden) this.document.activeElement = this.self;
  }

  click() {
    if (this.disabled === true) return;
    this.dispatch("click");
    if (this.tag !== "button" || this.type !== "submit") return;
    let form = this.parent;
    while (form.tag !== "form") form = form.parent;
    form.dispatch("submit");
  }

  scrollIntoView() {}
  select() {}

  showModal() {
    this.open = true;
  }

  close() {
    this.open = false;
  }

  getContext() {
    const drawImage = (source) => {
      this.drawn = source;
    };
    return strict({ fillStyle: "", fillRect: () => {}, drawImage }, "the context");
  }

  toDataURL(type) {
    this.document.drawings.push({ source: this.drawn, width: this.width, height: this.height, type });
    return this.document.drawing;
  }

  async play() {}

  /** A test says when there is a frame. */
  requestVideoFrameCallback(callback) {
    this.document.frames.push(callback);
  }
}

/** The document of index.html. */
function makeDocument(baseURI) {
  const document = Object.assign(new Listening(), {
    baseURI,
    activeElement: null,
    createElement: (tag) => new Element(tag, document).self,
    getElementById: (id) => find(document.body, id),
    // For tests: what canvases drew, and what they give; what waits for a frame of the video.
    drawings: [],
    drawing: "",
    frames: [],
  });
  document.body = new Element("body", document).self;
  let at = document.body;
  const html = readFileSync(new URL("index.html", PAGE), "utf8").split("<body>")[1].split("</body>")[0];
  for (const [, closing, tag, attributes, text] of html.matchAll(/<(\/?)(\w+)((?:[^>"']|"[^"]*"|'[^']*')*)>|([^<]+)/g)) {
    if (text !== undefined) at[at.tag === "textarea" ? "setText" : "append"](text);
    else if (closing) at = at.parent;
    else at = opened(document, at, tag, attributes);
  }
  return strict(document, "document");
}

function opened(document, parent, tag, attributes) {
  const made = document.createElement(tag);
  for (const [, name, , double, single] of attributes.matchAll(/([\w-]+)(=(?:"([^"]*)"|'([^']*)'))?/g)) {
    const value = double ?? single ?? "";
    made.setAttribute(name, value);
    if (name === "hidden" || name === "disabled") made[name] = true;
    else if (["id", "type", "value"].includes(name)) made[name] = value;
  }
  parent.append(made);
  return VOID.includes(tag) ? parent : made;
}

function find(parent, id) {
  for (const child of parent.children) {
    if (typeof child === "string") continue;
    const found = child.id === id ? child : find(child, id);
    if (found !== null) return found;
  }
  return null;
}

/** Let the globals be those of a browser that shows the page at `url`. Returns what tests look at. */
export function openPage(url, { key = null } = {}) {
  const document = makeDocument(`${url}/`);
  const stored = new Map(key === null ? [] : [["fastvlm-api-key", key]]);
  const copied = [];
  const tracks = [];
  const globals = {
    document,
    sessionStorage: strict(
      {
        getItem: (name) => stored.get(name) ?? null,
        setItem: (name, value) => stored.set(name, value),
        removeItem: (name) => stored.delete(name),
      },
      "sessionStorage",
    ),
    navigator: strict(
      {
        clipboard: { writeText: async (text) => copied.push(text) },
        mediaDevices: { getUserMedia: async () => makeStream(tracks) },
      },
      "navigator",
    ),
    Image: class {
      naturalWidth = globals.size[0];
      naturalHeight = globals.size[1];
      async decode() {
        if (globals.unreadable) throw new DOMException("The source image cannot be decoded.", "EncodingError");
      }
    },
    FileReader: class extends Listening {
      result = null;
      error = null;
      async readAsDataURL(file) {
        this.result = `data:${file.type};base64,${Buffer.from(await file.arrayBuffer()).toString("base64")}`;
        this.dispatch("load");
      }
    },
    size: [256, 256],
    unreadable: false,
  };
  for (const name of ["document", "sessionStorage", "navigator", "Image", "FileReader"]) {
    Object.defineProperty(globalThis, name, { value: globals[name], configurable: true, writable: true });
  }
  return { document, stored, copied, tracks, images: globals };
}

function makeStream(tracks) {
  const track = Object.assign(new Listening(), {
    stopped: false,
    stop() {
      this.stopped = true;
    },
  });
  tracks.push(track);
  return strict({ getTracks: () => [track] }, "the camera's stream");
}
