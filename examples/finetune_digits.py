"""Teach the demo model to read, which it can't do yet, from 5,000 images, as you would with your own data.

    python examples/finetune_digits.py --processes 2            # LoRA, on two cores
    python examples/finetune_digits.py --q-bits 4               # QLoRA: the same on the model in 4 bits
    python examples/finetune_digits.py --fine-tune-type dora    # and so on: see --help

It draws numbers of two or three digits and short words on the demo's backgrounds, two in an image, in six fonts, and
beside them 4,000 of the demo's own scenes with their questions, so that it won't forget those; writes them as anybody
would, images and `train.jsonl`; and runs `python -m mlx_fastvlm.lora`. Before and after, the model reads one text in
each of 300 images that it was not trained on, with numbers that none of those had, and answers 500 of its own
questions, about scenes held out from its own training too. What is written lies in `--work`: data, adapters, and
figures of all trainings in there. Needs matplotlib (`pip install "mlx-fastvlm[plot]"`), for its fonts too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from mlx_fastvlm import batch_generate, load

sys.path.insert(0, str(Path(__file__).parent / "demo"))

import evaluate

import scenes

PIXELS = 256
CELL = PIXELS // scenes.GRID  # a character stands in one, more or less: as the demo's shapes do
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold"),
    *("DejaVuSans-BoldOblique", "STIXGeneralBol"),
)
WORDS = (
    *("ant", "bear", "bed", "bee", "bird", "book", "bus", "car", "cat", "cup", "dog", "door", "fish", "fox", "hat"),
    *("hen", "hill", "ice", "key", "lake", "leaf", "lion", "pie", "rain", "ring", "rose", "ship", "sun", "tea", "tree"),
)
HELD_OUT_NUMBERS = frozenset(random.Random("held out").sample(range(10, 1000), 150))  # in no image of the training
ASKED = ("What does it say {}?", "What is written {}?", "Read the text {}.", "What do you read {}?")
PLACES = ("above", "below")
TRAINING = range(100_000)  # seeds of what is to be read
VALID = range(800_000, 800_100)
HELD_OUT = range(900_000, 900_300)
OLD = scenes.TRAINING_SEEDS[5_000_000:5_100_000]  # of scenes, for what it shall not forget
OTHERS = {  # counting and relations are asked more often than in its own world: they are forgotten first
    "count": 0.28, "left": 0.1, "right": 0.1, "above": 0.1, "below": 0.1,
    "colour": 0.08, "shape": 0.1, "size": 0.05, "exists": 0.09,
}  # fmt: skip
DRAWN = 240, 640  # pixels of those: drawn small only, they would teach it to see large ones less well
WORDINGS = 2  # rows of each image of text
AT_ONCE = 25  # images that are asked about together
BEFORE = {"reading": "images it was not trained on, read", "own questions": "the demo's own 500 questions"}


def choose_text(rng: random.Random, held_out: bool) -> str:
    """A word, or a number of two or three digits that is one of the held-out ones, or none of them."""
    numbers = {"two": range(10, 100), "three": range(100, 1000)}
    kind = rng.choice(("word", *numbers))
    if kind == "word":
        return rng.choice(WORDS)
    return str(rng.choice([number for number in numbers[kind] if (number in HELD_OUT_NUMBERS) == held_out]))


def draw_texts(seed: int, held_out: bool = False) -> tuple[Image.Image, list[str]]:
    """An image of a seed, and what it says above and below."""
    rng = random.Random(f"texts {seed}")
    image = scenes.draw(scenes.empty_scene(seed, rng), PIXELS)
    texts = [choose_text(rng, held_out) for _ in PLACES]
    for text, row in zip(texts, rng.choice(((0, 2), (0, 3), (1, 3)))):
        write(rng, image, text, row)
    return image, texts


def write(rng: random.Random, image: Image.Image, text: str, row: int):
    """A text somewhere in a row of cells, in any font and colour."""
    size = rng.randint(86, 98) if text.isdigit() else rng.randint(70, 80)
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{rng.choice(FONTS)}.ttf"
    font, mask = ImageFont.truetype(str(file), size), Image.new("L", image.size)
    first = rng.randrange(scenes.GRID + 1 - len(text))
    x = (first + 0.5) * CELL + rng.uniform(-4, 4)
    y = min(max((row + 0.5) * CELL + rng.uniform(-6, 6), 40), PIXELS - 40) + 0.34 * size  # of the line they stand on
    for place, character in enumerate(text):
        ImageDraw.Draw(mask).text((x + place * CELL, y), character, 255, font, anchor="ms")
    image.paste(scenes._vary(rng, rng.choice(list(scenes.COLOURS.values())), 12), (0, 0), mask)


def conversation(image: str, turns: list[tuple[str, str]]) -> dict:
    """A row of training data."""
    messages = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"images": [image], "messages": messages}


def write_texts(folder: Path, seeds: range, wordings: int = 1) -> list[dict]:
    """Images to read, and rows for each, which ask for both texts in so many wordings."""
    rows = []
    for seed in seeds:
        image, texts = draw_texts(seed)
        image.save(folder / f"images/text-{seed}.png")
        rng = random.Random(f"asked {seed}")
        for asked in rng.sample(ASKED, wordings):
            turns = [(asked.format(place), f"{text}.") for place, text in zip(PLACES, texts)]
            rows.append(conversation(f"images/text-{seed}.png", rng.sample(turns, len(turns))))
    return rows


def write_scenes(folder: Path, seeds: range) -> list[dict]:
    """Images of scenes, and a row of two questions for each; one in four has all that is there named."""
    rows = []
    for number, seed in enumerate(seeds):
        scene, rng = scenes.make_scene(seed), random.Random(f"asked {seed}")
        scenes.draw(scene, rng.randint(*DRAWN)).save(folder / f"images/scene-{seed}.png")
        asked = scenes.questions(scene, rng, 1, {"describe": 1.0}) if number % 2 else []
        asked += scenes.questions(scene, rng, 2 - len(asked), OTHERS)
        turns = [(question.text, question.answer) for question in rng.sample(asked, len(asked))]
        rows.append(conversation(f"images/scene-{seed}.png", turns))
    return rows


def write_data(folder: Path, texts: int, old: int, valid: int):
    """The data set, the same each time, unless one is there."""
    if (folder / "train.jsonl").is_file():
        return
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = write_texts(folder, TRAINING[:texts], WORDINGS) + write_scenes(folder, OLD[:old])
    for split, found in (("train", rows), ("valid", write_texts(folder, VALID[:valid]))):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))


def share_right(model, processor, asked: list[tuple[str, Image.Image, str]]) -> float:
    """Per cent of answers that are exactly right; of (question, image, answer)."""
    right = 0
    for start in range(0, len(asked), AT_ONCE):
        questions, images, answers = zip(*asked[start : start + AT_ONCE])
        found = batch_generate(model, processor, list(questions), list(images), max_tokens=64)
        right += sum(answer == wanted for answer, wanted in zip(found, answers))
    return 100 * right / len(asked)


def measure(model, adapters: Path | None, arguments: argparse.Namespace) -> dict[str, float]:
    """What a model can: read held-out images, and answer its own old questions."""
    model, processor = load(model, adapter_path=adapters)
    texts = []
    for seed in HELD_OUT[: arguments.held_out]:  # of each one text
        image, found = draw_texts(seed, held_out=True)
        texts.append((ASKED[0].format(PLACES[seed % 2]), image, f"{found[seed % 2]}."))
    about = [scenes.make_scene(seed) for seed in scenes.HELD_OUT_SEEDS[: arguments.own]]
    old = [(evaluate.conversation(scene, 1)[0], scenes.draw(scene, evaluate.PIXELS)) for scene in about]
    return {
        "reading": share_right(model, processor, texts),
        "own questions": share_right(model, processor, [(asked.text, image, asked.answer) for asked, image in old]),
    }


def measure_before(model, work: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """The same without adapters, which is measured once for all trainings in a folder."""
    file = work / f"before-{Path(model).name}-{arguments.held_out}-{arguments.own}"
    if not file.is_file():
        file.write_text(json.dumps(measure(model, None, arguments)))
    return json.loads(file.read_text())


def run(*words: str | Path | float, processes: int = 1):
    """A command, as one would type it; in several processes as `mlx.launch` starts them, which takes a core itself."""
    print("$ python -m", shlex.join(map(str, words)), flush=True)
    command = [sys.executable, "-m", *map(str, words)]
    if processes == 1:
        subprocess.run(command, check=True)
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as free:
        sockets = [free.enter_context(socket.socket()) for _ in range(processes)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        hosts = Path(folder) / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{each.getsockname()[1]}"] for each in sockets]))
        free.close()
        ranks = [{"MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank)} for rank in range(processes)]
        started = [subprocess.Popen(command, env=os.environ | rank) for rank in ranks]
        while any(process.poll() is None for process in started):
            time.sleep(0.2)
            if any(process.poll() for process in started):  # the others would wait for it
                for process in started:
                    process.terminate()
        if any(process.wait() for process in started):
            raise SystemExit("error: the training did not end well; what it said stands above.")


def train(model, work: Path, name: str, arguments: argparse.Namespace):
    """What a user would type: all layers, the projector, and the embedding, whose rows for digits were never needed."""
    adapters = ["--fine-tune-type", arguments.fine_tune_type, "--rank", arguments.rank, "--scale", 10]
    what = ["--num-layers", -1, "--train-projector", *adapters]
    what += ["--train-vision", "--vision-stages", arguments.vision_stages] if arguments.vision_stages else []
    what += [] if arguments.no_embeddings else ["--train-embeddings"]
    steps = ["--iters", arguments.iters, "--batch-size", 16, "--learning-rate", arguments.learning_rate]
    how = ["--dtype", "float32", "--optimizer", "adamw", "--lr-schedule", "cosine", "--warmup", 200]
    how += ["--max-grad-norm", 1, "--weight-decay", arguments.weight_decay]
    shown = ["--steps-per-report", 10, "--steps-per-eval", 200, "--save-every", 100]
    shown += ["--resume"] if arguments.resume else []
    files = ["--data", work / "data", "--adapter-path", work / name, "--feature-folder", work / "features"]
    command = ["mlx_fastvlm.lora", "--model", model, *files, "--train", *what, *steps, *how, *shown]
    run(*command, processes=arguments.processes)


def plot(work: Path):
    """Figures of all trainings that are in a folder: their losses, what they can, and what they took."""
    results = [json.loads(file.read_text()) for file in sorted(work.glob("*.json"))]
    losses = Figure(figsize=(7, 4), layout="constrained")
    axes = losses.add_subplot()
    for result in results:
        told = [json.loads(line) for line in (work / result["name"] / "log.jsonl").read_text().splitlines()]
        points = [(line["iteration"], line["valid_loss"]) for line in told if "valid_loss" in line]
        axes.plot(*zip(*points), marker="o", markersize=3, linewidth=1.5, label=result["name"])
    axes.set(xlabel="iteration", ylabel="cross entropy (nats a token)", title="Reading: images not trained on")
    axes.set_yscale("log")
    finish(axes)
    losses.savefig(work / "losses.png", dpi=150)

    rows = {}  # of each base before, and of each training after
    for result in sorted(results, key=lambda result: "-on-" in result["name"]):
        base = result["name"].partition("-on-")[2].removesuffix("-layers-only")
        rows[f"before {base}".strip()] = result["before"] | {"memory": 0}
        rows[result["name"]] = result["after"] | {"memory": result["peak_memory"]}
    shares = Figure(figsize=(7, 0.9 + 0.55 * len(rows)), layout="constrained")
    right, memory = shares.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    for shift, (key, label) in enumerate(BEFORE.items()):
        places = [place + 0.4 * shift - 0.2 for place in range(len(rows))]
        bars = right.barh(places, [row[key] for row in rows.values()], height=0.36, label=label)
        right.bar_label(bars, fmt="%.1f%%", padding=2, fontsize=8)
    right.set(yticks=range(len(rows)), yticklabels=list(rows), xlim=(0, 118), xlabel="exactly right (%)")
    right.invert_yaxis()
    peaks = [row["memory"] for row in rows.values()]
    bars = memory.barh(range(len(rows)), peaks, height=0.5, color="0.6")
    memory.bar_label(bars, [f"{peak:.2f}" if peak else "" for peak in peaks], padding=2, fontsize=8)
    memory.set(xlabel="peak memory,\na process (GB)")
    memory.margins(x=0.3)
    finish(right, loc="upper center", bbox_to_anchor=(0.5, 1.22), ncols=2, fontsize=8)
    memory.spines[["top", "right"]].set_visible(False)
    shares.savefig(work / "results.png", dpi=150)


def finish(axes, **legend):
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, **legend)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default="digits", metavar="FOLDER", help="folder for the results (digits)")
    parser.add_argument("--q-bits", type=int, choices=(4, 8), help="train adapters on the model in this many bits")
    parser.add_argument(
        "--fine-tune-type", choices=("lora", "dora", "full"), default="lora", help="what to train (lora)"
    )
    parser.add_argument("--rank", type=int, default=16, help="rank of the adapters (16)")
    parser.add_argument(
        "--vision-stages", type=int, default=1, metavar="N", help="stages of the tower, counted from the end (1)"
    )
    parser.add_argument("--no-embeddings", action="store_true", help="don't train the embedding and the head")
    parser.add_argument("--learning-rate", type=float, default=8e-4, metavar="X", help="learning rate (0.0008)")
    parser.add_argument(
        "--weight-decay", type=float, default=0.2, metavar="X", help="weight decay towards the old model (0.2)"
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes that train together (1)")
    parser.add_argument("--iters", type=int, default=2000, help="batches to train on (2000)")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted training")
    parser.add_argument("--texts", type=int, default=5000, metavar="N", help="images of text to train on (5000)")
    parser.add_argument(
        "--old", type=int, default=4000, metavar="N", help="images of the demo's own world to train on (4000)"
    )
    parser.add_argument("--valid", type=int, default=len(VALID), metavar="N", help="images to validate with (100)")
    parser.add_argument("--held-out", type=int, default=len(HELD_OUT), metavar="N", help="images to test on (300)")
    parser.add_argument(
        "--own", type=int, default=500, metavar="N", help="questions to ask about the demo's own world (500)"
    )
    arguments = parser.parse_args()

    work, model = arguments.work, "demo"
    write_data(work / "data", arguments.texts, arguments.old, arguments.valid)
    if arguments.q_bits:
        model = work / f"demo-{arguments.q_bits}bit"
        if not model.is_dir():
            run("mlx_fastvlm.convert", "--hf-path", "demo", "--mlx-path", model, "-q", "--q-bits", arguments.q_bits)
    name = arguments.fine_tune_type + ("" if arguments.fine_tune_type == "full" else f"-{arguments.rank}")
    name += f"-on-{arguments.q_bits}bit" if arguments.q_bits else ""
    name += "-layers-only" if arguments.no_embeddings else ""
    before = measure_before(model, work, arguments)
    start = time.perf_counter()
    train(model, work, name, arguments)
    seconds = time.perf_counter() - start
    after = measure(model, work / name, arguments)
    for what, said in BEFORE.items():
        print(f"{said}: {before[what]:.1f}% -> {after[what]:.1f}%")
    print(f"trained in {seconds / 60:.1f} minutes")
    told = [json.loads(line) for line in (work / name / "log.jsonl").read_text().splitlines()]
    memory = max(line.get("peak_memory", 0) for line in told)
    result = {"name": name, "before": before, "after": after, "seconds": seconds, "peak_memory": memory}
    (work / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    plot(work)


if __name__ == "__main__":
    main()
