"""Draws docs/figures/sizes.png: the time to the first token against the picture's size.

    python benchmarks/generation.py sizes | tee sizes.txt | python docs/figures/sizes.py

Reads the table that the benchmark prints. Needs matplotlib.
"""

import re
import sys
from pathlib import Path

from matplotlib.figure import Figure


def draw(table: str) -> Figure:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| \d+ \| ([\d.]+) s \|$", table, re.M)
    sizes, tokens, seconds = zip(*((int(a), int(b), float(c)) for a, b, c in rows))
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(sizes, seconds, "o-", color="#2a6fdb", linewidth=2)
    for size, count, time in zip(sizes, tokens, seconds):
        axes.annotate(
            f"{time:.2f} s\n{count} tokens", (size, time), (-8, 4), textcoords="offset points", ha="right", fontsize=9
        )
    axes.set(
        xlabel="side of the picture (pixels)",
        ylabel="first token after (s)",
        xticks=sizes,
        xlim=(min(sizes) - 130, max(sizes) + 30),
        ylim=(0, 1.15 * max(seconds)),
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    draw(sys.stdin.read()).savefig(Path(__file__).parent / "sizes.png", dpi=150)
