"""Whether memory stays flat: 600 questions in one process, each about another image.

    python benchmarks/long_run.py [MODEL] [QUESTIONS]

Prints the process's memory and MLX's after every 50 questions, and draws docs/figures/long-run.svg where matplotlib is
installed. The questions take turns: a single one, one in a conversation that is begun anew after 10, and one with a
vision cache; both vision caches hold 1 MB, which the images fill in the first 200 questions.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mlx_fastvlm import ChatSession, VisionCache, generate, load


def resident() -> float:
    """The process's memory in MB. On a Mac it is the largest so far, which will do to see growth."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1e3
    import resource  # noqa: PLC0415  not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def images(count: int):
    """Photographs as they come: no two of the same size or content."""
    random = np.random.default_rng(0)
    for _ in range(count):
        width, height = random.integers(100, 2000, 2)
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        yield Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.BICUBIC)


def measure(name: str, questions: int) -> list[tuple[int, float, float, float]]:
    """After each question: its number, the process's memory, what MLX holds and what it keeps for reuse, in MB."""
    import mlx.core as mx  # noqa: PLC0415  after the package, so that OpenBLAS is found

    model, processor = load(name)
    cache = VisionCache(max_bytes=10**6)
    session = ChatSession(model, processor, max_tokens=30, vision_cache=VisionCache(max_bytes=10**6))
    rows = []
    for i, image in enumerate(images(questions)):
        if i % 3 == 0:
            generate(model, processor, f"What are these? {i}", image, max_tokens=30)
        elif i % 3 == 1:
            if len(session.messages) >= 20:
                session.reset()
            session.ask(f"And these? {i}", image)
        else:
            generate(model, processor, "What is red?", image, max_tokens=30, vision_cache=cache)
        rows.append((i + 1, resident(), mx.get_active_memory() / 1e6, mx.get_cache_memory() / 1e6))
        if i % 50 == 49:
            print("{:4d} questions: process {:6.0f} MB, MLX active {:5.1f} MB, MLX kept {:6.1f} MB".format(*rows[-1]))
    return rows


def draw(rows: list[tuple[int, float, float, float]], file: Path):
    from matplotlib import pyplot  # noqa: PLC0415  optional

    numbers, process, active, kept = zip(*rows)
    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    axes.plot(numbers, process, label="process")
    axes.plot(numbers, kept, label="MLX, kept for reuse")
    axes.plot(numbers, active, label="MLX, in use")
    axes.set(xlabel="questions", ylabel="MB", ylim=(0, None), xlim=(0, len(rows)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center right")
    figure.savefig(file, metadata={"Date": None})


def main():
    name, questions = (sys.argv + ["demo", "600"][len(sys.argv) - 1 :])[1:3]
    rows = measure(name, int(questions))
    try:
        draw(rows, Path(__file__).parent.parent / "docs" / "figures" / "long-run.svg")
    except ImportError:
        print("no drawing without matplotlib")


if __name__ == "__main__":
    main()
