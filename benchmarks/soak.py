"""Whether memory, threads and open files stay flat: 5,000 mixed operations in one process.

    python benchmarks/soak.py [--operations 5000] [--seed 0] [--csv soak.csv] [--plot docs/figures/soak.svg]

The operations are drawn at random: answers greedy and sampled, turns of a conversation, batches, captions of a folder,
answers that are left or cancelled in their midst, prompt caches written and read, models that are loaded and dropped,
and calls that fail. Every 100 operations the process's memory, MLX's, the system's threads and the open files are read.
At the end the medians of the second and of the last fifth are compared (the first fifth warms up); more growth than
``MARGINS`` allows is an error. Works on Linux and a Mac; threads and open files are Linux's alone.
"""

import argparse
import csv
import gc
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from mlx_fastvlm import (
    ChatSession,
    Engine,
    PromptCache,
    VisionCache,
    batch_generate,
    generate,
    load,
    load_prompt_cache,
    save_prompt_cache,
    stream_generate,
)
from mlx_fastvlm.data.sinks import Destination
from mlx_fastvlm.generation.dataset import Job, caption_dataset

from long_run import images, resident  # isort: skip  (it lies beside this file)

EVERY = 100
# What the last fifth may have more than the second: MB, MB, threads, files.
MARGINS = {"resident": 20.0, "active": 2.0, "threads": 1, "files": 1}
Operation = Callable[[], object]


class Soak:
    """The operations, over one model that stays and what the operations share."""

    def __init__(self, seed: int, folder: Path):
        self.rng, self.folder = random.Random(seed), folder
        self.model, self.processor = load("demo")
        self.shown = []
        self.vision = VisionCache(max_bytes=10**6)
        self.session = ChatSession(self.model, self.processor, max_tokens=8, vision_cache=self.vision)
        (folder / "images").mkdir()
        for number, image in zip(range(40), images(40)):
            self.shown.append(image)
            if number < 2:
                image.save(folder / "images" / f"{number}.png")

    def image(self):
        return self.rng.choice(self.shown)

    def question(self) -> str:
        return self.rng.choice(("What are these?", "What is red?", "How many?", "é 東京?")) + str(self.rng.random())

    def greedy(self):
        generate(self.model, self.processor, self.question(), self.image(), max_tokens=8)

    def sampled(self):
        options = {"temperature": 1.0, "top_p": 0.9, "seed": self.rng.randrange(1000), "repetition_penalty": 1.1}
        generate(self.model, self.processor, self.question(), self.image(), max_tokens=8, **options)

    def turn(self):
        if len(self.session.messages) >= 8 or self.rng.random() < 0.1:
            self.session.reset()
        self.session.ask(self.question(), self.image() if self.rng.random() < 0.4 else None)

    def batch(self):
        count = self.rng.randint(2, 4)
        prompts = [self.question() for _ in range(count)]
        batch_generate(self.model, self.processor, prompts, [self.image() for _ in range(count)], max_tokens=6)

    def bounded(self):
        options = self.rng.choice(({"max_kv_size": 80}, {"kv_bits": 8, "kv_group_size": 32}))
        generate(self.model, self.processor, self.question(), max_tokens=30, **options)

    def captions(self):
        folder, output = self.folder / "images", self.folder / "captions.jsonl"
        job = Job([folder], Destination(str(output), overwrite=True), "What are these?")
        caption_dataset(self.model, self.processor, job, max_tokens=4)
        output.unlink()

    def loaded(self):
        model, processor = load("demo")
        if self.rng.random() < 0.3:
            generate(model, processor, self.question(), self.image(), max_tokens=2)

    def left(self):
        with closing(stream_generate(self.model, self.processor, self.question(), self.image())) as stream:
            next(stream)

    def cancelled(self):
        engine = Engine(self.model, self.processor, max_rows=2)
        answers = [engine.submit(self.question(), self.image(), max_tokens=8) for _ in range(3)]
        engine.step()
        engine.cancel(self.rng.choice(answers))
        while engine.step():
            pass

    def kept(self):
        cache, file = PromptCache(), self.folder / "cache.safetensors"
        generate(self.model, self.processor, self.question(), self.image(), max_tokens=4, prompt_cache=cache)
        save_prompt_cache(file, cache)
        again = load_prompt_cache(file, self.model)
        generate(self.model, self.processor, self.question(), self.image(), max_tokens=2, prompt_cache=again)

    def failing(self):
        calls = (
            lambda: generate(self.model, self.processor, "What?", self.folder / "none.png"),
            lambda: generate(self.model, self.processor, "What?", self.image(), max_tokens=-1),
            lambda: generate(self.model, self.processor, [{"role": "user"}]),
            lambda: generate(self.model, self.processor, "<image><image>", self.image()),
            lambda: generate(self.model, self.processor, "a" * 10**5),
            lambda: load(self.folder),
            lambda: self.session.ask("Broken", b"no image at all"),
        )
        try:
            self.rng.choice(calls)()
        except (ValueError, OSError):
            return
        raise AssertionError("a call that should fail went through")

    def operations(self) -> tuple[list[Operation], list[int]]:
        shares = {
            self.greedy: 20, self.sampled: 15, self.turn: 20, self.batch: 10, self.bounded: 8, self.captions: 4,
            self.loaded: 3, self.left: 6, self.cancelled: 5, self.kept: 4, self.failing: 5,
        }  # fmt: skip
        return list(shares), list(shares.values())


def measured() -> dict[str, float]:
    """MB of the process and of MLX; threads and open files, 0 where the system does not tell."""
    import mlx.core as mx  # noqa: PLC0415  after the package, so that OpenBLAS is found

    gc.collect()
    tasks, files = Path("/proc/self/task"), Path("/proc/self/fd")
    return {
        "resident": resident(),
        "active": mx.get_active_memory() / 1e6,
        "kept": mx.get_cache_memory() / 1e6,
        "threads": len(list(tasks.iterdir())) if tasks.exists() else 0,
        "files": len(list(files.iterdir())) if files.exists() else 0,
    }


def run(operations: int, seed: int) -> list[dict[str, float]]:
    rows, done, begun = [], Counter(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(seed, Path(folder))
        chosen, shares = soak.operations()
        for number in range(1, operations + 1):
            (operation,) = soak.rng.choices(chosen, shares)
            operation()
            done[operation.__name__] += 1
            if number % EVERY == 0:
                rows.append({"operations": number, "seconds": time.perf_counter() - begun, **measured()})
                print("  ".join(f"{name} {value:.1f}" for name, value in rows[-1].items()), flush=True)
    print(", ".join(f"{count} {name}" for name, count in done.most_common()))
    return rows


def growth(rows: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Medians of the second and of the last fifth."""
    fifth = len(rows) // 5
    if not fifth:
        raise SystemExit(f"soak.py needs at least {5 * EVERY} operations")
    return {
        name: tuple(statistics.median(row[name] for row in part) for part in (rows[fifth : 2 * fifth], rows[-fifth:]))
        for name in MARGINS
    }


def draw(rows: list[dict[str, float]], file: Path):
    from matplotlib import pyplot  # noqa: PLC0415  optional

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(7, 4.4), sharex=True, layout="constrained")
    numbers = [row["operations"] for row in rows]
    for name, label in (("resident", "process"), ("kept", "MLX, kept for reuse"), ("active", "MLX, in use")):
        above.plot(numbers, [row[name] for row in rows], label=label)
    for name, label in (("threads", "threads"), ("files", "open files")):
        below.plot(numbers, [row[name] for row in rows], label=label)
    above.set(ylabel="MB")
    below.set(xlabel="operations", xlim=(0, numbers[-1]))
    for axes, place in ((above, "center right"), (below, "lower right")):
        axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc=place)
    figure.savefig(file, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--operations", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    rows = run(args.operations, args.seed)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    if args.plot:
        draw(rows, args.plot)
    grown = False
    for name, (before, after) in growth(rows).items():
        print(f"{name}: {before:.1f} in the second fifth, {after:.1f} in the last")
        grown |= after > before + MARGINS[name]
    return grown


if __name__ == "__main__":
    sys.exit(main())
