"""How much accuracy does each precision cost? Convert a model to several, and ask each the same questions.

    python examples/compare_quantization.py --plot accuracy.png
    python examples/compare_quantization.py --model apple/FastVLM-0.5B --questions mine.json

The questions stand in a JSON file beside their images: {"photo.jpg": {"questions": [{"question": "What ...?",
"answer": "..."}]}}. By default they are the demo's, 80 about eight images: too few to tell 8 bits from 4, as the
error bars show. `benchmarks/quantization.py` asks the demo checkpoint 500. `--plot` needs matplotlib.
"""

import argparse
import importlib.util
import json
import tempfile
from pathlib import Path

from mlx_fastvlm import VisionCache, convert, generate, load

PRECISIONS = {
    "16 bits": {},
    "8 bits": {"quantize": True, "q_bits": 8},
    "6 bits": {"quantize": True, "q_bits": 6},
    "4 bits": {"quantize": True, "q_bits": 4},
    "3 bits": {"quantize": True, "q_bits": 3},
    "2 bits": {"quantize": True, "q_bits": 2},
    "8 bits, vision too": {"quantize": True, "q_bits": 8, "q_vision": True},
    "4 bits, vision too": {"quantize": True, "q_bits": 4, "q_vision": True},
}


def read_questions(file: Path) -> list[tuple[Path, str, str]]:
    """(image, question, right answer) of each."""
    listed = json.loads(file.read_text(encoding="utf-8"))
    return [
        (file.parent / image, asked["question"], asked["answer"])
        for image, entry in listed.items()
        for asked in entry["questions"]
    ]


def accuracy(folder: Path, questions: list[tuple[Path, str, str]]) -> float:
    """The share of questions that the model in a folder answers right, word for word but for case and full stops."""
    model, processor = load(folder)
    seen = VisionCache()  # each image goes through the tower once, however many questions there are about it
    right = 0
    for image, question, answer in questions:
        said = generate(model, processor, question, str(image), max_tokens=64, vision_cache=seen)
        right += said.strip(" .").lower() == answer.strip(" .").lower()
    return right / len(questions)


def plot(rows: list[tuple[str, float, float]], questions: int, path: Path):
    """Accuracy against size: a point for each precision, with the standard error that so many questions leave."""
    from matplotlib.figure import Figure  # noqa: PLC0415  optional

    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for name, size, right in rows:
        error = (right * (1 - right) / questions) ** 0.5
        marker = "s" if "vision" in name else "o"
        axes.errorbar(size, 100 * right, 100 * error, marker=marker, capsize=3, linestyle="none", label=name)
    axes.set(xlabel="size of the weights (MB)", ylabel="right answers (%)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="a folder, a hub id or demo (%(default)s)")
    parser.add_argument(
        "--questions", type=Path, metavar="FILE", default=Path(__file__).parent / "images" / "questions.json"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw accuracy against size; needs matplotlib")
    arguments = parser.parse_args()
    if arguments.plot and not importlib.util.find_spec("matplotlib"):
        parser.error("--plot needs matplotlib; install it with pip install matplotlib")

    questions, rows = read_questions(arguments.questions), []
    print(f"{len(questions)} questions")
    for name, options in PRECISIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "converted"
            report = convert(arguments.model, target, verify=False, **options)
            rows.append((name, report.size_after / 1e6, accuracy(target, questions)))
        print("{:<20} {:8.2f} MB  {:6.1%} right".format(*rows[-1]), flush=True)
    if arguments.plot:
        plot(rows, len(questions), arguments.plot)


if __name__ == "__main__":
    main()
