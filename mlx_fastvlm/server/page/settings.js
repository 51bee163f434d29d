// The settings' fields, all of them text -> what a request can say.

export const IMAGE_STEP = 64; // pixels: the tower makes one token of so many, squared

/** A field that can't be read. */
export class FieldError extends Error {
  /** @param {string} field its name in `readSettings` */
  constructor(field, message) {
    super(message);
    this.name = "FieldError";
    this.field = field;
  }
}

/**
 * @param {{temperature: string, maxTokens: string, imageSize: string, seed: string, system: string, schema: string}}
 *   texts an empty one leaves it to the server
 * @returns {object} under the same names; undefined for what is empty
 */
export function readSettings(texts) {
  return {
    temperature: number(texts, "temperature", "The temperature", 0),
    maxTokens: whole(texts, "maxTokens", "The token limit", 1),
    imageSize: imageSize(texts),
    seed: whole(texts, "seed", "The seed", 0),
    system: texts.system.trim() || undefined,
    schema: schema(texts.schema),
  };
}

const NAMES = {
  schema: "JSON schema",
  system: "system prompt",
  temperature: "temperature",
  maxTokens: "tokens",
  imageSize: "pixels",
  seed: "seed",
};

/** Which of the chat's settings are given, for people: "JSON schema · temperature 0.7"; "" for none. */
export function inForce(texts) {
  const given = Object.keys(NAMES).filter((field) => texts[field].trim() !== "");
  const told = given.map((field) => (["schema", "system"].includes(field) ? "" : ` ${texts[field].trim()}`));
  return given.map((field, i) => `${NAMES[field]}${told[i]}`).join(" · ");
}

function number(texts, field, name, least) {
  const text = texts[field].trim().replace(",", ".");
  if (text === "") return undefined;
  const value = Number(text);
  if (!Number.isFinite(value) || value < least) {
    throw new FieldError(field, `${name} must be a number from ${least} up.`);
  }
  return value;
}

function whole(texts, field, name, least) {
  const text = texts[field].trim();
  if (text === "") return undefined;
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value) || value < least) {
    throw new FieldError(field, `${name} must be a whole number from ${least} up.`);
  }
  return value;
}

function imageSize(texts) {
  const size = whole(texts, "imageSize", "The image size", IMAGE_STEP);
  if (size !== undefined && size % IMAGE_STEP !== 0) {
    throw new FieldError("imageSize", `The image size must be a multiple of ${IMAGE_STEP} pixels.`);
  }
  return size;
}

function schema(text) {
  if (text.trim() === "") return undefined;
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new FieldError("schema", `The schema is not valid JSON: ${error.message}`);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    throw new FieldError("schema", "The schema must be a JSON object.");
  }
  return value;
}
