// JSON -> a table for people.

/**
 * @returns {{head: string[], rows: string[][]} | null} null for what is no JSON, or neither an object nor a list
 *
 * A list of objects has a row for each and a column for each name; an object, or any other list, a row for each value.
 */
export function toTable(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    return null;
  }
  if (value === null || typeof value !== "object") return null;
  if (Array.isArray(value) && value.length > 0 && value.every(isObject)) return ofObjects(value);
  const head = Array.isArray(value) ? ["#", "value"] : ["name", "value"];
  const rows = Object.entries(value).map(([name, inner]) => [Array.isArray(value) ? `${+name + 1}` : name, cell(inner)]);
  return { head, rows };
}

function ofObjects(values) {
  const head = [...new Set(values.flatMap(Object.keys))];
  const rows = values.map((value) => head.map((name) => (Object.hasOwn(value, name) ? cell(value[name]) : "")));
  return { head, rows };
}

function isObject(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

function cell(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}
