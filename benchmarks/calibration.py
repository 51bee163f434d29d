"""Whether ``decide`` is as sure as it is right: yes-or-no questions about held-out images of the demo checkpoint.

    python benchmarks/calibration.py [--questions 2000] [--figure docs/figures/calibration.png]

Prints a Markdown table: for each tenth of the probability of the choice, how many questions, how sure `decide` was of
its choice, and how often that was right; then the accuracy and the expected calibration error (Guo et al., arXiv
1706.04599), which is the mean distance between the two. ``--blur`` makes the images harder than the training's.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import mlx_fastvlm  # before mlx, so that OpenBLAS is found

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "demo"))

import numpy as np  # isort: skip
import scenes  # isort: skip
from PIL import ImageFilter  # isort: skip

BINS = np.linspace(0.5, 1, 11)


def ask(count: int, blur: float):
    """Questions, images and right answers; one question a scene."""
    for seed in scenes.HELD_OUT_SEEDS[:count]:
        scene = scenes.make_scene(seed)
        (question,) = scenes.questions(scene, random.Random(f"calibration {seed}"), 1, {"exists": 1.0})
        image = scenes.draw(scene, 256)
        yield question.text, image.filter(ImageFilter.GaussianBlur(blur)) if blur else image, question.answer.strip(".")


def measure(count: int, blur: float):
    """(questions,) how sure each choice was, and whether it was right."""
    model, processor = mlx_fastvlm.load("demo")
    sure, right = [], []
    for question, image, answer in ask(count, blur):
        found = mlx_fastvlm.decide(model, processor, question, image, choices=["Yes", "No"])
        sure.append(found.probabilities[found.choice])
        right.append(found.choice == answer)
    return np.array(sure), np.array(right)


def table(sure, right):
    """Rows of (from, to, questions, mean probability, share that was right), and the expected calibration error."""
    which = np.clip(np.digitize(sure, BINS) - 1, 0, len(BINS) - 2)
    rows = []
    for i in sorted(set(which)):
        here = which == i
        rows.append((BINS[i], BINS[i + 1], here.sum(), sure[here].mean(), right[here].mean()))
    return rows, sum(n * abs(mean - share) for _, _, n, mean, share in rows) / len(sure)


def draw(results, file: str):
    from matplotlib.figure import Figure  # noqa: PLC0415  not everybody has matplotlib

    figure = Figure(figsize=(5.2, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0.5, 1], [0.5, 1], color="#999999", linewidth=1, label="as sure as right")
    for name, rows, error in results:
        counts = np.array([row[2] for row in rows])
        xs, ys = [row[3] for row in rows], [row[4] for row in rows]
        label = f"{name}: expected calibration error {error:.3f}"
        axes.scatter(xs, ys, s=8 + 400 * counts / counts.sum(), alpha=0.7, label=label)  # by how many they are
    axes.set(xlabel="probability of the choice", ylabel="share that was right", xlim=(0.48, 1.02), ylim=(0, 1.05))
    legend = axes.legend(loc="lower left", fontsize=8)
    for handle in legend.legend_handles[1:]:
        handle.set_sizes([30])
    figure.savefig(file, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument(
        "--blur", type=float, nargs="*", default=[0, 6], help="blur radius in pixels, at 256 a side; one run each"
    )
    parser.add_argument("--figure")
    arguments = parser.parse_args()
    results = []
    for blur in arguments.blur:
        sure, right = measure(arguments.questions, blur)
        rows, error = table(sure, right)
        name = f"blurred by {blur:g} pixels" if blur else "as drawn"
        results.append((name, rows, error))
        print(f"{len(sure)} questions, images {name}: accuracy {right.mean():.1%}, calibration error {error:.3f}\n")
        print("| probability of the choice | questions | mean | right |\n|---|---|---|---|")
        for low, high, count, mean, share in rows:
            print(f"| {low:.2f} to {high:.2f} | {count} | {mean:.3f} | {share:.3f} |")
        print(flush=True)
    if arguments.figure:
        draw(results, arguments.figure)


if __name__ == "__main__":
    main()
