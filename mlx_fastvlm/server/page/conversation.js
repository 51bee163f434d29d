// What was said -> the body of a chat request.

/** Questions with their answers. A question: {text, images}; an image: {url}, a data URI. */
export class Conversation {
  #turns = [];

  /** A question that was answered; others are not part of what the model is told. */
  add(question, answer) {
    this.#turns.push({ question, answer });
  }

  /** The body that asks `question` after all of this. */
  body(question, settings, model) {
    const messages = this.#turns.flatMap(({ question, answer }) => [
      userMessage(question),
      { role: "assistant", content: answer },
    ]);
    return requestBody([...messages, userMessage(question)], settings, model);
  }
}

/**
 * @param {object[]} messages of users and assistants
 * @param {object} settings of settings.js; what is undefined there is left to the server
 * @param {string|null} model null: the one that is served
 */
export function requestBody(messages, settings, model) {
  const images = messages.some(({ content }) => Array.isArray(content));
  const system = settings.system ? [{ role: "system", content: settings.system }] : [];
  const fields = {
    model: model ?? undefined,
    messages: [...system, ...messages],
    temperature: settings.temperature,
    max_completion_tokens: settings.maxTokens,
    seed: settings.seed,
    image_size: images ? settings.imageSize : undefined,
    response_format: settings.schema && {
      type: "json_schema",
      json_schema: { name: "answer", strict: true, schema: settings.schema },
    },
  };
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
}

/** The same, answered piece by piece, with its usage at the end. */
export function streamed(body) {
  return { ...body, stream: true, stream_options: { include_usage: true } };
}

/** One question, alone. */
export function singleBody(question, settings, model) {
  return requestBody([userMessage(question)], settings, model);
}

function userMessage({ text, images }) {
  if (images.length === 0) return { role: "user", content: text };
  const parts = images.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  return { role: "user", content: [...parts, { type: "text", text }] };
}

/** A chunk of a stream -> {text, finish, tokens, model}; undefined where it says nothing about it. */
export function readChunk(chunk) {
  const choice = chunk.choices?.[0];
  return {
    text: choice?.delta?.content ?? "",
    finish: choice?.finish_reason ?? undefined,
    tokens: chunk.usage?.completion_tokens,
    model: chunk.model,
  };
}
