// A request as a command for the shell, and as a program. Images become files, whose names stand for the user's own; a
// key becomes the variable FASTVLM_API_KEY, so that no key is ever copied.

const TYPES = { jpeg: "jpg", "svg+xml": "svg" }; // image/TYPE -> the ending of a file, where that is another
const STREAMING = ["stream", "stream_options"];
// Fields of this server that OpenAI's client does not know.
const EXTENSIONS = ["image_size"];

/**
 * @param {object} body of a chat request
 * @param {{base: string, key: boolean}} options base: address of /v1/; key: whether the server wants one
 */
export function curl(body, { base, key }) {
  const json = JSON.stringify(whole(body));
  const call = [`curl ${quoted(`${base}chat/completions`)}`, `-H 'Content-Type: application/json'`];
  if (key) call.push(`-H "Authorization: Bearer $FASTVLM_API_KEY"`);
  const pieces = split(json, files(body));
  if (pieces.length === 1) return [...call, `-d ${quoted(json)}`].join(" \\\n  ") + "\n";
  // By standard input, since a command line has not room enough for an image.
  const writing = pieces.map((piece) => (piece.file ? `base64 < ${piece.file} | tr -d '\\n'` : `printf %s ${quoted(piece.text)}`));
  return `(\n  ${writing.join("\n  ")}\n) | ${[...call, "--data-binary @-"].join(" \\\n  ")}\n`;
}

/** The same as a program with OpenAI's client. */
export function python(body, { base, key }) {
  const { model, ...fields } = whole(body);
  const names = files(body);
  const extra = Object.entries(fields).filter(([name]) => EXTENSIONS.includes(name));
  const known = Object.entries(fields).filter(([name]) => !EXTENSIONS.includes(name));
  const values = [
    ["model", model === undefined ? "client.models.list().data[0].id" : literal(model)],
    ...known.map(([name, value]) => [name, literal(value, names, "    ")]),
  ];
  if (extra.length) values.push(["extra_body", literal(Object.fromEntries(extra))]);
  const lines = [
    ...(names.size ? ["import base64"] : []),
    ...(key ? ["import os"] : []),
    ...(names.size || key ? [""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(base)}, api_key=${key ? 'os.environ["FASTVLM_API_KEY"]' : '"none"'})`,
    ...(names.size ? ["", "", ...READING, "", ""] : [""]),
    "answer = client.chat.completions.create(",
    ...values.map(([name, value]) => `    ${name}=${value},`),
    ")",
    "print(answer.choices[0].message.content)",
  ];
  return lines.join("\n") + "\n";
}

const READING = [
  "def data_uri(path, kind):",
  '    with open(path, "rb") as file:',
  '        return f"data:{kind};base64," + base64.b64encode(file.read()).decode()',
];

/** The request whose answer comes at once. */
function whole(body) {
  return Object.fromEntries(Object.entries(body).filter(([name]) => !STREAMING.includes(name)));
}

/** The images of a request: data URI -> {name, type, head}, in the order in which they come. */
function files(body) {
  const found = new Map();
  for (const { content } of body.messages) {
    for (const part of Array.isArray(content) ? content : []) {
      const url = part.image_url?.url;
      const match = url?.match(/^(data:(image\/([a-z0-9.+-]+));base64,)/i);
      if (!match || found.has(url)) continue;
      const ending = match[3].toLowerCase();
      found.set(url, { name: `image-${found.size + 1}.${TYPES[ending] ?? ending}`, type: match[2], head: match[1] });
    }
  }
  return found;
}

/** JSON -> [{text} | {file}], with a file for the base64 of each image. */
function split(json, names) {
  const pieces = [];
  let rest = json;
  for (;;) {
    const found = [...names.entries()]
      .map(([url, file]) => ({ url, file, at: rest.indexOf(`"url":"${url}"`) }))
      .filter(({ at }) => at >= 0)
      .sort((one, other) => one.at - other.at)[0];
    if (!found) return [...pieces, { text: rest }];
    const start = found.at + '"url":"'.length;
    pieces.push({ text: rest.slice(0, start + found.file.head.length) }, { file: found.file.name });
    rest = rest.slice(start + found.url.length);
  }
}

/** Text as one word of a POSIX shell. */
export function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A JSON value as Python; its strings need no more escapes than JSON's. */
export function literal(value, names = new Map(), indent = "") {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") {
    const file = typeof value === "string" ? names.get(value) : undefined;
    return file ? `data_uri(${JSON.stringify(file.name)}, ${JSON.stringify(file.type)})` : JSON.stringify(value);
  }
  const inner = `${indent}    `;
  const list = Array.isArray(value);
  const items = list
    ? value.map((item) => literal(item, names, inner))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item, names, inner)}`);
  const [open, close] = list ? "[]" : "{}";
  const line = `${open}${items.join(", ")}${close}`;
  if (line.length <= 60 && !line.includes("\n")) return line;
  return `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${indent}${close}`;
}
