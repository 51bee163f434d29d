"""Turn a folder of images and a JSON schema into a table: CSV or JSON lines, which pandas reads.

    python examples/photos_to_table.py photos --schema columns.json --output table.csv --model apple/FastVLM-0.5B
    python examples/photos_to_table.py --demo 100 --output table.csv

The schema describes one row: a column is a property, and its `description` is the question. Where the schema lists what
can be answered (`enum`, `boolean`, whole numbers of a range, or `oneOf` with a `const` and, as the model says it, a
`title`), the model chooses by `batch_decide`, and a second column tells how sure it was. Anything else is generated and
kept to the column's schema, which needs `pip install "mlx-fastvlm[constraints]"`.

`--demo N` draws N images of one shape each, asks the demo checkpoint, and compares with the truth.
"""

import argparse
import csv
import json
import sys
import tempfile
from pathlib import Path

from mlx_fastvlm import VisionCache, batch_decide, batch_generate, load

DEMO = {
    "type": "object",
    "properties": {
        "shape": {
            "description": "What shape is it?",
            "oneOf": [
                {"const": shape, "title": f"A {shape}"}
                for shape in ("circle", "square", "triangle", "star", "cross", "heart")
            ],
        },
        "colour": {
            "description": "What colour is it?",
            "enum": ["Red", "Orange", "Yellow", "Green", "Cyan", "Blue", "Purple", "Pink"],
        },
        "size": {
            "description": "Is it big or small?",
            "oneOf": [{"const": "big", "title": "Big"}, {"const": "small", "title": "Small"}],
        },
        "circles": {
            "description": "How many circles are there?",
            "oneOf": [{"const": 0, "title": "Zero"}, {"const": 1, "title": "One"}, {"const": 2, "title": "Two"}],
        },
    },
}
MOST_NUMBERS = 100  # that a range may list


def listed(column: dict) -> dict[str, object] | None:
    """What a column can hold, by what the model would say; None where that is not listed."""
    if "oneOf" in column and all("const" in one for one in column["oneOf"]):
        return {str(one.get("title", one["const"])): one["const"] for one in column["oneOf"]}
    if "enum" in column:
        return {str(value): value for value in column["enum"]}
    if column.get("type") == "boolean":
        return {"Yes": True, "No": False}
    if column.get("type") == "integer" and {"minimum", "maximum"} <= column.keys():
        numbers = range(column["minimum"], column["maximum"] + 1)
        return {str(n): n for n in numbers} if len(numbers) <= MOST_NUMBERS else None
    return None


def fill(model, processor, files: list[Path], columns: dict[str, dict], batch_size: int) -> list[dict]:
    """A row for each file."""
    rows: list[dict] = [{"file": file.name} for file in files]
    images = [str(file) for file in files]
    shared = {"vision_cache": VisionCache(), "batch_size": batch_size}  # each image is encoded once for all columns
    for name, column in columns.items():
        questions = [column.get("description", f"What is the {name}?")] * len(files)
        values = listed(column)
        if values is None:
            texts = batch_generate(model, processor, questions, images, json_schema=column, **shared)
            for row, text in zip(rows, texts):
                row[name] = whole(text)
        elif len(values) < 2:
            raise ValueError(f"The column {name} can only hold one value; leave it out.")
        else:
            found = batch_decide(model, processor, questions, images, choices=list(values), **shared)
            for row, decision in zip(rows, found):
                row[name] = values[decision.choice]
                row[f"{name}_probability"] = round(decision.probabilities[decision.choice], 4)
    return rows


def whole(text: str) -> object:
    """The value of a JSON text; None for one that was cut off."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def write(rows: list[dict], output: Path):
    with output.open("w", encoding="utf-8", newline="") as file:
        if output.suffix == ".csv":
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def draw_demo(count: int, folder: Path) -> dict[str, dict]:
    """Images of one shape each from seeds that the demo was not trained on, and the truth about each."""
    sys.path.insert(0, str(Path(__file__).parent / "demo"))
    import scenes  # noqa: PLC0415  beside this file, and for the demo only

    truth = {}
    for seed in scenes.HELD_OUT_SEEDS[:count]:
        (thing,) = (scene := scenes.make_scene(seed, most_things=1)).things
        scenes.draw(scene, 256).save(folder / f"{seed}.png")
        colour, circles = thing.colour.capitalize(), int(thing.shape == "circle")
        truth[f"{seed}.png"] = {"shape": thing.shape, "colour": colour, "size": thing.size, "circles": circles}
    return truth


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder", nargs="?", type=Path)
parser.add_argument("--schema", type=Path, help="JSON schema of a row (the one for the demo's shapes)")
parser.add_argument("--output", type=Path, default=Path("table.csv"), help="a .csv or .jsonl file (%(default)s)")
parser.add_argument("--model", default="demo", help="a folder, a hub id or demo (%(default)s)")
parser.add_argument("--batch-size", type=int, default=8, help="images at a time (%(default)s)")
parser.add_argument("--demo", type=int, metavar="N", help="draw N images instead of reading a folder")
arguments = parser.parse_args()
if (arguments.folder is None) == (arguments.demo is None):
    parser.error("give a folder of images, or --demo N")

schema = json.loads(arguments.schema.read_text(encoding="utf-8")) if arguments.schema else DEMO
with tempfile.TemporaryDirectory() as drawn:
    folder = Path(drawn) if arguments.demo else arguments.folder
    truth = draw_demo(arguments.demo, folder) if arguments.demo else {}
    images = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    if not images:
        parser.error(f"{folder} has no images")
    rows = fill(*load(arguments.model), images, schema["properties"], arguments.batch_size)
write(rows, arguments.output)
print(f"{len(rows)} rows in {arguments.output}")
for name in schema["properties"] if truth else ():
    right = sum(row[name] == truth[row["file"]][name] for row in rows)
    print(f"{name}: {right} of {len(rows)} right")
