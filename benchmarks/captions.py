"""Captions by the hundred thousand: does the engine wait for images, does memory stay flat, and what does it save?

    python benchmarks/captions.py --images 100000 --shards 100 --plot docs/figures/captions.png
    python benchmarks/captions.py --images 2000 --shards 4 --compare

Draws images of the demo checkpoint's world into tar shards (those that are there already are kept) and captions them
with the demo checkpoint. Prints captions a second, the share of time in which nothing ran for want of an image, and the
process's memory in the second and the last fifth of the run: more growth than ``MARGIN`` is an error. With --seconds
it ends after so many, and says how many images that were; run again, it goes on there, and draws what it measured then.

``--compare`` times three other things instead: the same images asked one after the other by ``generate``, with
``caption_dataset`` before and after it; and one process against two, each kept to one core, that caption a half each.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "demo"))

import scenes
from mlx_fastvlm import generate, load
from mlx_fastvlm.data.sinks import Destination
from mlx_fastvlm.files import atomic_file
from mlx_fastvlm.generation.dataset import Job, Summary, caption_dataset

from long_run import resident  # isort: skip  (it lies beside this file)

PROMPT = "Describe the image."
EVERY = 250  # records between two looks at memory
MARGIN = 20.0  # MB that the last fifth may have more than the second


def draw_shards(folder: Path, images: int, shards: int, pixels: int) -> list[Path]:
    """Tar shards as webdataset names them: ``000000.tar`` with ``00000000.jpg`` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:06}.tar" for number in range(shards)]
    for number, file in enumerate(files):
        if not file.exists():
            with atomic_file(file) as unfinished, tarfile.open(unfinished, "w") as tar:
                for i in range(images * number // shards, images * (number + 1) // shards):
                    data = io.BytesIO()
                    scenes.draw(scenes.make_scene(scenes.HELD_OUT_SEEDS[i]), pixels).save(data, "JPEG", quality=90)
                    member = tarfile.TarInfo(f"{i:08}.jpg")
                    member.size = data.tell()
                    data.seek(0)
                    tar.addfile(member, data)
    return files


class Watch:
    """Takes a row of figures every few records, and ends the run when its time is over."""

    def __init__(self, seconds: float):
        self.rows: list[dict[str, float]] = []
        self._seconds = seconds

    def __call__(self, summary: Summary):
        done = summary.answered + summary.errors
        if done % EVERY == 0 and done and (not self.rows or self.rows[-1]["done"] != done):
            row = {"done": done, "seconds": summary.seconds, "waited": summary.waited, "resident": resident()}
            self.rows.append(row)
            print("  ".join(f"{name} {value:.1f}" for name, value in row.items()), flush=True)
        if summary.seconds > self._seconds:
            raise KeyboardInterrupt


def run(files: list[Path], args: argparse.Namespace) -> bool:
    model, processor = load("demo")
    watch = Watch(args.seconds)
    job = Job([*files], Destination(str(args.folder / "captions.jsonl")), PROMPT, batch_size=args.batch_size)
    summary: Summary | None = None
    try:
        summary = caption_dataset(model, processor, job, watch, max_tokens=args.max_tokens, image_size=args.image_size)
    except KeyboardInterrupt:
        print("its time is over")
    rows = watch.rows
    if len(rows) < 10:
        raise SystemExit(f"captions.py needs at least {10 * EVERY} images for a figure")
    last = rows[-1]
    print(
        f"{last['done']:.0f} captions in {last['seconds']:.0f} s, {last['done'] / last['seconds']:.2f}/s; nothing ran "
        f"for want of an image in {100 * last['waited'] / last['seconds']:.2f}% of the time"
    )
    if summary is not None:
        print(f"{summary.skipped} were done before, {summary.errors} are errors")
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    if args.plot:
        draw(rows, args.plot)
    fifth = len(rows) // 5
    early, late = (
        statistics.median(row["resident"] for row in part) for part in (rows[fifth : 2 * fifth], rows[-fifth:])
    )
    print(f"memory: {early:.1f} MB in the second fifth, {late:.1f} MB in the last")
    return late > early + MARGIN


def draw(rows: list[dict[str, float]], file: Path):
    from matplotlib import pyplot  # noqa: PLC0415  optional

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(7, 4.4), sharex=True, layout="constrained")
    done = [row["done"] for row in rows]
    above.plot(done, [row["resident"] for row in rows])
    above.set(ylabel="memory of the process, MB", ylim=(0, 1.3 * max(row["resident"] for row in rows)))
    below.plot(done, [100 * row["waited"] / row["seconds"] for row in rows])
    below.set(xlabel="captions", ylabel="time without an image, %", xlim=(0, done[-1]), ylim=(0, 5))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Software": None})


def compare(files: list[Path], args: argparse.Namespace):
    """Everything at a time against one image after the other, and one process against two."""
    options = {"max_tokens": args.max_tokens, "image_size": args.image_size}
    model, processor = load("demo")

    def ahead() -> tuple[float, dict[str, str]]:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "captions.jsonl"
            job = Job([*files], Destination(str(output)), PROMPT, batch_size=args.batch_size)
            summary = caption_dataset(model, processor, job, **options)
            records = map(json.loads, output.read_text().splitlines())
            return summary.seconds, {record["key"]: record["text"] for record in records}

    def one_by_one() -> tuple[float, dict[str, str]]:
        texts, start = {}, time.perf_counter()
        for file in files:
            with tarfile.open(file) as tar:
                for member in tar:
                    data = tar.extractfile(member).read()
                    texts[f"{file.name}/{Path(member.name).stem}"] = generate(model, processor, PROMPT, data, **options)
        return time.perf_counter() - start, texts

    ahead()  # warms up
    (before, texts), (loop, plain), (after, _) = ahead(), one_by_one(), ahead()
    crowd = (before + after) / 2
    same = sum(plain[key] == text for key, text in texts.items())
    print(
        f"one by one: {len(plain) / loop:.2f}/s; caption_dataset: {len(plain) / crowd:.2f}/s, {loop / crowd:.2f} times"
    )
    print(f"{same} of {len(plain)} texts are the same")
    alone, both = (processes(files, count, args) for count in (1, 2))
    print(f"a process on a core: {len(plain) / alone:.2f}/s; two on two: {len(plain) / both:.2f}/s, "
          f"{alone / both:.2f} times")  # fmt: skip


def processes(files: list[Path], count: int, args: argparse.Namespace) -> float:
    """Seconds until the slowest of some processes, each on a core of its own, has captioned its part."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "mlx_fastvlm.caption", *map(str, files), "--model", "demo", "--prompt", PROMPT,
            "--output", str(Path(folder) / "captions.jsonl"), "--max-tokens", str(args.max_tokens), "--json",
            "--image-size", str(args.image_size), "--batch-size", str(args.batch_size), "--quiet",
        ]  # fmt: skip
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < count:
            raise SystemExit(f"captions.py --compare needs {count} cores")
        started = [
            subprocess.Popen(
                [*command, "--shard", f"{i}/{count}"],
                stdout=subprocess.PIPE,
                preexec_fn=lambda core=cores[i]: os.sched_setaffinity(0, {core}),
            )
            for i in range(count)
        ]
        return max(json.loads(process.communicate()[0])["seconds"] for process in started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--pixels", type=int, default=64, help="longer side of the drawn images (64)")
    parser.add_argument("--image-size", type=int, default=64, help="side that the model sees (64)")
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--folder", type=Path, help="folder to keep shards and records in (a temporary one)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this many seconds")
    parser.add_argument("--compare", action="store_true", help="time a plain loop and two processes instead")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        args.folder = args.folder or Path(temporary)
        files = draw_shards(args.folder, args.images, args.shards, args.pixels)
        if args.compare:
            compare(files, args)
            return 0
        return run(files, args)


if __name__ == "__main__":
    sys.exit(main())
