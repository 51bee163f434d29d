// An image of the demo checkpoint's world, for whoever has none at hand.

const SIDE = 512; // pixels
const GRID = 4; // cells a side; the demo tells places apart by them
const RADIUS = 52;
const BACK = "#eef0f2";
const COLOURS = ["#dc2328", "#f8870f", "#fadc1e", "#23a041", "#28cddc", "#234bdc", "#822db4", "#f87dc3"];

/** How many shapes make a good first image. */
export const ENOUGH = 3;

// Around (0, 0), with a radius of 1.
const OUTLINES = {
  circle: Array.from({ length: 72 }, (_, i) => onCircle(i / 72, 0.9)),
  square: [0.125, 0.375, 0.625, 0.875].map((turn) => onCircle(turn, 1)),
  triangle: [0, 1 / 3, 2 / 3].map((turn) => onCircle(turn, 1)),
  star: Array.from({ length: 10 }, (_, i) => onCircle(i / 10, i % 2 === 0 ? 1 : 0.42)),
};

/** A file, PNG, with `count` shapes in places, forms and colours that chance decides. */
export async function drawShapes(count, random = Math.random) {
  const canvas = document.createElement("canvas");
  canvas.width = SIDE;
  canvas.height = SIDE;
  const context = canvas.getContext("2d");
  context.fillStyle = BACK;
  context.fillRect(0, 0, SIDE, SIDE);
  const cells = shuffled(Array.from({ length: GRID * GRID }, (_, i) => i), random);
  const colours = shuffled(COLOURS, random);
  const outlines = Object.values(OUTLINES);
  for (let i = 0; i < count; i += 1) {
    const [column, row] = [cells[i] % GRID, Math.floor(cells[i] / GRID)];
    context.fillStyle = colours[i];
    paint(context, outlines[Math.floor(random() * outlines.length)], centre(column), centre(row));
  }
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  return new File([blob], "shapes.png", { type: "image/png" });
}

function paint(context, outline, x, y) {
  context.beginPath();
  for (const [dx, dy] of outline) context.lineTo(x + dx * RADIUS, y + dy * RADIUS);
  context.fill();
}

function centre(cell) {
  return ((cell + 0.5) * SIDE) / GRID;
}

/** A point after so much of a turn, from the top. */
function onCircle(turn, radius) {
  return [radius * Math.sin(2 * Math.PI * turn), -radius * Math.cos(2 * Math.PI * turn)];
}

function shuffled(values, random) {
  const left = [...values];
  return values.map(() => left.splice(Math.floor(random() * left.length), 1)[0]);
}
