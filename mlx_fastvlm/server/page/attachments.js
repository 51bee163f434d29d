// The images of the next question: picked, dropped or pasted files -> data URIs, with thumbnails.

import { byId, element } from "./dom.js";
import { LONGEST, drawnType, fitted, isSentAsItIs, unreadable } from "./images.js";

export class Attachments {
  #list = byId("thumbnails");
  #images = [];
  #reading = Promise.resolve();
  #notify;
  #accepts;
  #added;

  /**
   * @param {(message: string) => void} notify
   * @param {() => boolean} accepts whether dropped and pasted images belong here now
   * @param {() => void} added called after images came
   */
  constructor({ notify, accepts, added }) {
    this.#notify = notify;
    this.#accepts = accepts;
    this.#added = added;
    const files = byId("files");
    for (const button of ["pick", "pick-first"]) byId(button).addEventListener("click", () => files.click());
    files.addEventListener("change", () => {
      this.add([...files.files]);
      files.value = ""; // so that the same file can be picked again
    });
    document.addEventListener("paste", (event) => {
      const pasted = [...(event.clipboardData?.files ?? [])];
      if (pasted.length === 0 || !this.#accepts()) return;
      event.preventDefault();
      this.add(pasted);
    });
    this.#takeDrops();
  }

  /** Read files, one after the other. */
  add(files) {
    for (const file of files) {
      this.#reading = this.#reading.then(() => this.#read(file));
    }
  }

  /** The images, {url, name}, once all are read; then there are none. */
  async take() {
    await this.#reading;
    const images = this.#images;
    this.#images = [];
    this.#list.replaceChildren();
    return images;
  }

  /** Back, after a question that was not answered. */
  putBack(images) {
    images.forEach((image) => this.#show(image));
  }

  async #read(file) {
    try {
      this.#show(await readImage(file));
      this.#added();
    } catch (error) {
      this.#notify(error.message);
    }
  }

  #show(image) {
    const remove = element("button", { type: "button", textContent: "×", title: `Remove ${image.name}` });
    remove.setAttribute("aria-label", remove.title);
    const title = `${image.name}, ${image.note}`;
    const shown = element("li", {}, element("img", { src: image.url, alt: title, title }), remove);
    remove.addEventListener("click", () => {
      this.#images = this.#images.filter((other) => other !== image);
      shown.remove();
      byId("prompt").focus();
    });
    this.#images.push(image);
    this.#list.append(shown);
  }

  #takeDrops() {
    const carriesFiles = (event) => event.dataTransfer !== null && event.dataTransfer.types.includes("Files");
    const mark = (dropping) => document.body.classList.toggle("dropping", dropping);
    document.addEventListener("dragover", (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault(); // else the browser would open the file
      mark(this.#accepts());
    });
    document.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) mark(false);
    });
    document.addEventListener("drop", (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      mark(false);
      if (this.#accepts()) this.add([...event.dataTransfer.files]);
    });
  }
}

/** A file -> {url, name, note}; an error for people where the browser can't read it. */
async function readImage(file) {
  const name = file.name || "image";
  const image = new Image();
  const address = URL.createObjectURL(file);
  try {
    image.src = address;
    await image.decode();
    const { naturalWidth: width, naturalHeight: height } = image;
    if (width === 0 || height === 0) throw new Error("no size");
    if (isSentAsItIs(file.type, width, height)) {
      return { url: await dataUri(file), name, note: `${width} × ${height}` };
    }
    const size = fitted(width, height, LONGEST);
    const scaled = size.width < width || size.height < height ? ", scaled down" : "";
    return { url: drawn(image, size, drawnType(file.type)), name, note: `${size.width} × ${size.height}${scaled}` };
  } catch {
    throw new Error(unreadable(name, file.type));
  } finally {
    URL.revokeObjectURL(address);
  }
}

function dataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}

/** An image, or what a video shows, as a data URI. What is transparent becomes white, as the server has it. */
export function drawn(source, { width, height }, type, canvas = document.createElement("canvas")) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0, width, height);
  return canvas.toDataURL(type, 0.92);
}
