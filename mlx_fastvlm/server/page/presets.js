// Questions to begin with.

import { byId, element } from "./dom.js";

// Apple's own, of the app that came with the model.
const APPLE = [
  ["Describe", "Describe the image in English. Output should be brief, about 15 words or less."],
  ["Expression", "What is this person's facial expression? Output only one or two words."],
  ["Read text", "What is written in this image? Output only the text in the image."],
];
// The demo checkpoint knows other words.
const DEMO = [
  ["Describe", "What are these?"],
  ["Count", "How many circles are there?"],
  ["Find", "Is there a red star?"],
];

// Schemas to begin with: what such a model can fill in.
const SCHEMA = object({ subject: { type: "string" }, people: { type: "integer" }, outdoors: { type: "boolean" } });
const DEMO_SCHEMA = object({
  size: { enum: ["big", "small"] },
  colour: { enum: ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"] },
  shape: { enum: ["circle", "square", "triangle", "star", "cross", "heart"] },
});

function object(properties) {
  return { type: "object", properties, required: Object.keys(properties), additionalProperties: false };
}

/** Whether this model is the demo checkpoint. */
export function isDemo(model) {
  return model === "demo";
}

/** The questions for a model: [name, text]. */
export function presetsOf(model) {
  return isDemo(model) ? DEMO : APPLE;
}

/** A JSON schema for its answers. */
export function exampleSchema(model) {
  return isDemo(model) ? DEMO_SCHEMA : SCHEMA;
}

/** Buttons that write one of the questions into a field, in the element with the id `group`. */
export function offerPresets(presets, group, field) {
  const buttons = presets.map(([name, text]) => {
    const button = element("button", { type: "button", textContent: name });
    button.addEventListener("click", () => {
      field.value = text;
      field.focus();
    });
    return button;
  });
  byId(group).replaceChildren(...buttons);
}
