"""Teach the demo model to read numbers, which it can't, from 2,000 images, as one would with own data.

    python examples/finetune_digits.py                # LoRA
    python examples/finetune_digits.py --q-bits 4     # QLoRA: the same on the model in 4 bits

It draws numbers of two digits on the demo's backgrounds, in six fonts, and among them 500 of the demo's own scenes with
their questions, so that it won't forget those; writes them as anybody would, images and `train.jsonl`; and runs
`python -m mlx_fastvlm.lora`. Before and after, the model reads 200 numbers that it was not trained on, and answers 500
of its own questions, about scenes held out from its training too. What is written lies in `--work`: data, adapters,
plots of the loss and results. Needs matplotlib (`pip install "mlx-fastvlm[plot]"`), for its fonts and the plots.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from mlx_fastvlm import batch_generate, load

sys.path.insert(0, str(Path(__file__).parent / "demo"))

import evaluate

import scenes

PIXELS = 256
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold"),
    *("DejaVuSans-BoldOblique", "STIXGeneralBol"),
)
ASKED = ("What number is this?", "Which number do you see?", "Read the number.", "What number is in the image?")
TRAINING = range(1500)  # seeds of numbers
VALID = range(800_000, 800_100)
HELD_OUT = range(900_000, 900_200)
OLD = scenes.TRAINING_SEEDS[5_000_000:5_000_500]  # of scenes, for what it shall not forget
AT_ONCE = 25  # images that are asked about together


def draw_number(seed: int) -> tuple[Image.Image, str]:
    """An image of a number from 10 to 99, and the number."""
    rng = random.Random(f"number {seed}")
    scene = scenes.Scene(seed, (), 1.0, 1.0, rng.choice(list(scenes.BACKGROUNDS)), scenes._background_tints(rng))
    image, text = scenes._paint_background(scene, PIXELS, PIXELS), str(rng.randrange(10, 100))
    mask = Image.new("L", image.size)
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{rng.choice(FONTS)}.ttf"
    font = ImageFont.truetype(str(file), rng.randint(125, 150))
    x, y = (PIXELS / 2 + rng.uniform(-10, 10) for _ in range(2))
    apart = rng.uniform(54, 62)
    for digit, to_the_right in zip(text, (-apart, apart)):
        ImageDraw.Draw(mask).text((x + to_the_right, y), digit, 255, font, anchor="mm")
    mask = mask.rotate(rng.uniform(-4, 4), Image.Resampling.BICUBIC)
    image.paste(scenes._vary(rng, rng.choice(list(scenes.COLOURS.values())), 12), (0, 0), mask)
    return image, text


def conversation(image: str, turns: list[tuple[str, str]]) -> dict:
    """A row of training data."""
    messages = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"images": [image], "messages": messages}


def write_numbers(folder: Path, seeds: range) -> list[dict]:
    """Images of numbers, and a row for each."""
    rows = []
    for seed in seeds:
        image, text = draw_number(seed)
        image.save(folder / f"images/number-{seed}.png")
        asked = random.Random(f"asked {seed}").choice(ASKED)
        rows.append(conversation(f"images/number-{seed}.png", [(asked, f"{text}.")]))
    return rows


def write_scenes(folder: Path, seeds: range) -> list[dict]:
    """Images of scenes, and a row of four questions for each."""
    rows = []
    for seed in seeds:
        scene = scenes.make_scene(seed)
        scenes.draw(scene, PIXELS).save(folder / f"images/scene-{seed}.png")
        asked = scenes.questions(scene, random.Random(f"asked {seed}"), 4)
        rows.append(conversation(f"images/scene-{seed}.png", [(q.text, q.answer) for q in asked]))
    return rows


def write_data(folder: Path, numbers: int, old: int):
    """The data set, the same each time."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = write_numbers(folder, TRAINING[:numbers]) + write_scenes(folder, OLD[:old])
    for split, found in (("train", rows), ("valid", write_numbers(folder, VALID))):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))


def share_right(model, processor, asked: list[tuple[str, Image.Image, str]]) -> float:
    """Per cent of answers that are exactly right; of (question, image, answer)."""
    right = 0
    for start in range(0, len(asked), AT_ONCE):
        questions, images, answers = zip(*asked[start : start + AT_ONCE])
        found = batch_generate(model, processor, list(questions), list(images), max_tokens=64)
        right += sum(answer == wanted for answer, wanted in zip(found, answers))
    return 100 * right / len(asked)


def measure(model, adapters: Path | None, held_out: int, own: int) -> dict[str, float]:
    """What a model can: read held-out numbers, and its own old questions."""
    model, processor = load(model, adapter_path=adapters)
    numbers = [draw_number(seed) for seed in HELD_OUT[:held_out]]
    about = [scenes.make_scene(seed) for seed in scenes.HELD_OUT_SEEDS[:own]]
    old = [(evaluate.conversation(scene, 1)[0], scenes.draw(scene, evaluate.PIXELS)) for scene in about]
    return {
        "numbers": share_right(model, processor, [(ASKED[0], image, f"{text}.") for image, text in numbers]),
        "own questions": share_right(model, processor, [(asked.text, image, asked.answer) for asked, image in old]),
    }


def run(*words: str | Path | float):
    """A command, as one would type it."""
    print("$ python -m", shlex.join(map(str, words)), flush=True)
    subprocess.run([sys.executable, "-m", *map(str, words)], check=True)


def train(model, work: Path, name: str, arguments: argparse.Namespace):
    adapters = ["--fine-tune-type", arguments.fine_tune_type, "--rank", arguments.rank, "--scale", 32 / arguments.rank]
    steps = ["--iters", arguments.iters, "--batch-size", 16, "--learning-rate", arguments.learning_rate]
    what = ["--num-layers", -1, "--train-projector", *adapters]
    shown = ["--steps-per-report", 20, "--steps-per-eval", 100, "--plot", work / f"{name}.png"]
    files = ["--data", work / "data", "--adapter-path", work / name, "--feature-folder", work / "features"]
    how = ["--dtype", "float32", "--lr-schedule", "cosine", "--max-grad-norm", 1]
    run("mlx_fastvlm.lora", "--model", model, *files, "--train", *what, *steps, *how, *shown)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default="digits", metavar="FOLDER", help="(digits)")
    parser.add_argument("--q-bits", type=int, choices=(4, 8), help="train adapters on the model in so many bits")
    parser.add_argument("--fine-tune-type", choices=("lora", "dora", "full"), default="lora", help="(lora)")
    parser.add_argument("--rank", type=int, default=16, help="(16)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, metavar="X", help="(0.002)")
    parser.add_argument("--iters", type=int, default=400, help="(400)")
    parser.add_argument("--numbers", type=int, default=len(TRAINING), metavar="N", help="images of numbers (1500)")
    parser.add_argument("--old", type=int, default=len(OLD), metavar="N", help="images of its own world (500)")
    parser.add_argument("--held-out", type=int, default=len(HELD_OUT), metavar="N", help="numbers to read (200)")
    parser.add_argument("--own", type=int, default=500, metavar="N", help="own questions to ask (500)")
    arguments = parser.parse_args()

    work, model = arguments.work, "demo"
    write_data(work / "data", arguments.numbers, arguments.old)
    if arguments.q_bits:
        model = work / f"demo-{arguments.q_bits}bit"
        if not model.is_dir():
            run("mlx_fastvlm.convert", "--hf-path", "demo", "--mlx-path", model, "--q-bits", arguments.q_bits)
    name = arguments.fine_tune_type + (f"-{arguments.q_bits}bit" if arguments.q_bits else "") + f"-{arguments.rank}"
    before = measure(model, None, arguments.held_out, arguments.own)
    start = time.perf_counter()
    train(model, work, name, arguments)
    seconds = time.perf_counter() - start
    after = measure(model, work / name, arguments.held_out, arguments.own)
    for what in before:
        print(f"{what:14} {before[what]:5.1f}% -> {after[what]:5.1f}%")
    print(f"trained in {seconds / 60:.1f} minutes")
    result = {"before": before, "after": after, "seconds": seconds}
    (work / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
