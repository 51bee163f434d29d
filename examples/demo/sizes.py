"""Teach the demo checkpoint, trained at 256 pixels, to see and answer at 192 to 512 pixels too.

    python examples/demo/sizes.py CHECKPOINT --work WORK --export FOLDER

CHECKPOINT is what fuse.py wrote. Needs what train.py needs, and scipy. Each stage leaves its result in WORK, so a run
that was stopped goes on after the last stage that was done:

1. pictures   other scenes for each size, drawn at that size and at 256 pixels; and scribbles, at 256 pixels
2. tower      at every size, one token has of each thing what the token of its cell has at 256 pixels; of scribbles, it
              still sees what it saw
3. features   the new tower's view of every picture
4. decoder    conversations about those features, as in train.py
5. export     Apple's names, fused, in float16, as the checkpoint came
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ImageDraw
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.nn import functional as F

import scenes
import train


@dataclass(frozen=True)
class Size:
    """How much of the training one size gets."""

    scenes: int
    tower_share: float  # of the tower's steps
    tower_batch: int
    decoder_share: float  # of the decoder's steps


TEACHER = train.PIXELS
SIZES = {  # 192 pixels are the hardest: 9 tokens for 16 cells
    192: Size(18_000, 0.50, 32, 0.36),
    256: Size(7_500, 0.10, 32, 0.18),
    320: Size(4_000, 0.08, 32, 0.12),
    384: Size(4_000, 0.07, 24, 0.12),
    448: Size(2_000, 0.03, 16, 0.06),
    512: Size(3_500, 0.08, 16, 0.16),
}
SCRIBBLES, SCRIBBLED_SHARE, SCRIBBLED_BATCH = 4_000, 0.14, 32
TOWER_STEPS, TOWER_RATE, TOWER_AVERAGE = 2_600, 1e-3, 0.98
PLAN = train.ROUNDS[-1]  # its questions and crowds
PULL = 1.2  # what it costs a token to speak for a thing outside it, for each squared token of distance
HEADS = 0.5  # the heads' share of the loss
CHECK = range(20_000, 20_200)  # of the held-out scenes; evaluate.py asks about the first


# 1. Pictures


def seeds_of(size: int) -> range:
    """The training scenes seen at a size: at 256 pixels, where the teacher sees them, all scenes of the other sizes."""
    others = [other for other in SIZES if other != TEACHER]
    if size == TEACHER:
        return scenes.TRAINING_SEEDS[: sum(SIZES[other].scenes for other in others)]
    start = sum(SIZES[other].scenes for other in others[: others.index(size)])
    return scenes.TRAINING_SEEDS[start : start + SIZES[size].scenes]


def tokens_of(size: int) -> int:
    return (size // train.PATCH) ** 2


def scribble(seed: int, pixels: int) -> np.ndarray:
    """Lines, bows and blots on a scene's background: what the demo's world lacks, and what else is made of."""
    rng = random.Random(f"scribble {seed}")
    picture = scenes.draw(scenes.empty_scene(seed, rng), pixels)
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.randint(4, 12)):
        colour = scenes._vary(rng, rng.choice(list(scenes.COLOURS.values())), 40)
        extent, width = rng.uniform(0.06, 0.3) * pixels, rng.randint(5, 16)
        x, y = rng.uniform(0, pixels), rng.uniform(0, pixels)
        points = [
            (x + rng.uniform(-extent, extent), y + rng.uniform(-extent, extent)) for _ in range(rng.randint(2, 5))
        ]
        box = (x - extent / 2, y - extent * rng.uniform(0.3, 0.7), x + extent / 2, y + extent * rng.uniform(0.3, 0.7))
        kind = rng.choice(("line", "line", "bow", "bow", "ring", "blot"))
        if kind == "line":
            pen.line(points, colour, width, joint="curve")
        elif kind == "bow":
            start = rng.uniform(0, 360)
            pen.arc(box, start, start + rng.uniform(60, 270), colour, width)
        elif kind == "ring":
            pen.ellipse(box, outline=colour, width=width)
        else:
            pen.polygon(points, colour)
    return np.asarray(picture)


# 2. The tower


def load_demo(folder: Path) -> tuple[nn.Module, train.Decoder]:
    """The fused tower and the decoder of a checkpoint that fuse.py wrote."""
    weights = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    tower = reparameterize_model(train.make_tower().eval())
    tower.load_state_dict({name: weights.pop(apples) for name, apples in names_of(tower).items()}, strict=False)
    decoder = train.Decoder()
    decoder.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
    return tower.to(memory_format=torch.channels_last), decoder


def names_of(tower: nn.Module) -> dict[str, str]:
    """timm's name of each of a fused tower's weights, and Apple's."""
    return {name: fused_name(name) for name in tower.state_dict() if not name.endswith("num_batches_tracked")}


def fused_name(name: str) -> str:
    """Apple's name of one of timm's fused weights."""
    name = name.replace("pos_emb.", "pos_emb.pos_enc.").replace("proj.0.reparam_conv", "proj.0.lkb_reparam")
    return train.apple_name(name).replace(".pe.", ".")


class Heads:
    """Tell a thing's shape, colour, size and cell from its features; fitted once, they stay as they are.

    Args:
        features: projected, of some things at 256 pixels: (things, HIDDEN).
        known: (things, 4) class numbers.
        scale: the variance of all features.
    """

    def __init__(self, features: Tensor, known: Tensor, scale: Tensor, steps: int) -> None:
        self.scale = scale
        self.linear = nn.Linear(train.HIDDEN, sum(ANSWERS))
        optimizer = torch.optim.Adam(self.linear.parameters(), lr=3e-3)
        for _ in range(steps):
            rows = torch.randint(len(features), (2_048,))
            loss = self.misread(features[rows], known[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.linear.requires_grad_(False)

    def say(self, features: Tensor) -> tuple[Tensor, ...]:
        """Logits of each of the four."""
        return self.linear(features / self.scale.sqrt()).split(ANSWERS, dim=-1)

    def misread(self, features: Tensor, known: Tensor) -> Tensor:
        """Cross-entropy of what the heads say of some things' features."""
        return sum(F.cross_entropy(part, known[:, i]) for i, part in enumerate(self.say(features)))


class Teacher:
    """What the checkpoint as it came sees at 256 pixels: the lesson for every other size.

    `targets` are its projected features of each scene, cell by cell; `empty` are those of a cell without a thing,
    averaged; `heads` tell things apart by them.
    """

    def __init__(self, tower: nn.Module, projector: nn.Module, pictures: np.ndarray, path: Path) -> None:
        self.tower, self.projector = tower, projector
        self.things = [scenes.make_scene(seed).things for seed in seeds_of(TEACHER)]
        self.cells = [[thing.row * scenes.GRID + thing.column for thing in things] for things in self.things]
        self.known = torch.from_numpy(np.stack([train.cell_targets(seed) for seed in seeds_of(TEACHER)]))
        self.targets = projector(train.features_of(tower, pictures, path).float())
        full = self.known[..., 0] == 1
        self.empty = torch.stack([self.targets[~full[:, cell], cell].mean(0) for cell in range(train.CELLS)])
        self.scale = self.targets.var()
        self.heads = Heads(self.targets[full], self.known[full][:, 1:], self.scale, steps=400)

    def loss(self, features: Tensor, rows: list[int], size: int) -> Tensor:
        """Of a tower's features (pictures, tokens, width): each thing has one token, the other tokens are empty.

        A thing belongs to the token that already speaks for it best; distance counts too (PULL).
        """
        seen = self.projector(features)
        side = size // train.PATCH
        empty = self.empty[cells_under(side)]
        wanted, full = empty.repeat(len(rows), 1, 1), torch.zeros(seen.shape[:2], dtype=torch.bool)
        spoken, known = [], []
        for picture, row in enumerate(rows):
            targets = self.targets[row, self.cells[row]]
            with torch.no_grad():
                errors = (seen[picture] - targets[:, None]).square().mean(-1)
                errors -= (seen[picture] - empty).square().mean(-1)
                far = torch.stack([distances(thing.x * side, thing.y * side, side) for thing in self.things[row]])
            things, tokens = linear_sum_assignment((errors / self.scale + PULL * far).numpy())
            wanted[picture, tokens] = targets[things]
            full[picture, tokens] = True
            spoken.append(seen[picture, tokens])
            known.append(self.known[row, self.cells[row]][things, 1:])
        errors = (seen - wanted).square().mean(-1) / self.scale
        misread = self.heads.misread(torch.cat(spoken), torch.cat(known))
        return errors[full].mean() + errors[~full].mean() + HEADS * misread

    def keep_loss(self, tower: nn.Module, pictures: np.ndarray) -> Tensor:
        """How far a tower's view of some pictures is from the teacher's, before the last stage and after it.

        The lesson about sizes is one about six shapes. Without this one, the tower forgot what other things look like,
        and the demo could hardly be taught to read any more (examples/finetune_digits.py).
        """
        with torch.no_grad():
            wanted = views_of(self.tower, pictures)
        with train.fast():
            seen = views_of(tower, pictures)
        return unlike(seen, wanted)


ANSWERS = list(train.CELL_TARGETS.values())[1:]


def views_of(tower: nn.Module, pictures: np.ndarray) -> tuple[Tensor, Tensor]:
    """A tower's features before its last stage and after it."""
    after, (before,) = tower.forward_intermediates(train.pixels_of(pictures), indices=[len(train.LAYERS) - 2])
    return before, after


def unlike(seen: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """How far features are from others, each squared distance as a share of their variance."""
    return sum(F.mse_loss(a.float(), b) / b.var() for a, b in zip(seen, wanted))


def cells_under(side: int) -> Tensor:
    """The cell that each token's centre lies in, of side x side tokens."""
    centres = ((torch.arange(side) + 0.5) * scenes.GRID / side).int()
    return (centres[:, None] * scenes.GRID + centres).flatten()


def distances(x: float, y: float, side: int) -> Tensor:
    """Of a point from each token's square, squared, in tokens."""
    at = torch.arange(side) + 0.5
    across, down = ((at - x).abs() - 0.5).clamp(min=0), ((at - y).abs() - 0.5).clamp(min=0)
    return (down[:, None] ** 2 + across**2).flatten()


def train_tower(work: Path, teacher: Teacher, pictures: dict[int, np.ndarray], scribbles: np.ndarray) -> nn.Module:
    """Teach a copy of the teacher's tower; returns its averaged weights."""
    path = work / "tower.pt"
    tower = copy.deepcopy(teacher.tower)
    if path.exists():
        tower.load_state_dict(torch.load(path))
        return tower.eval()
    tower.requires_grad_(True)  # in evaluation mode: the batches' statistics stay those that were fused
    average = copy.deepcopy(tower).requires_grad_(False)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=TOWER_RATE, weight_decay=0.02)
    shares = {size: plan.tower_share for size, plan in SIZES.items()} | {"scribbles": SCRIBBLED_SHARE}
    started, losses = time.time(), {lesson: [] for lesson in shares}
    for step in range(TOWER_STEPS):
        train.set_rates([optimizer], train.cosine_rate(step, TOWER_STEPS, warm_up=30))
        rng = random.Random(f"tower {train.SEED} {step}")
        lesson = rng.choices(list(shares), list(shares.values()))[0]
        if lesson == "scribbles":
            rows = sorted(rng.sample(range(len(scribbles)), SCRIBBLED_BATCH))
            loss = teacher.keep_loss(tower, scribbles[rows])
        else:
            rows = sorted(rng.sample(range(len(pictures[lesson])), SIZES[lesson].tower_batch))
            with train.fast():
                features = train.see(tower, pictures[lesson][rows])
            first = seeds_of(lesson).start
            loss = teacher.loss(features.float(), [first + row for row in rows], lesson)
        train.learn(loss, tower, [optimizer])
        train.average_in(average, tower, step + 1, TOWER_AVERAGE)
        losses[lesson].append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"tower {step + 1} {recent(losses)} {time.time() - started:.0f} s", flush=True)
    train.save(path, **average.state_dict())
    return average


def recent(losses: dict[int | str, list[float]]) -> dict[int | str, float]:
    return {lesson: round(float(np.mean(kept[-15:])), 4) for lesson, kept in losses.items() if kept}


# 4. The decoder


@dataclass(frozen=True)
class Course:
    """How the decoder is taught."""

    name: str
    steps: int
    share: float  # of train.py's learning rates
    average: float  # decay of the moving average of the weights
    sizes: dict[int, float]  # each size's share of the steps


def train_decoder(
    work: Path,
    decoder: train.Decoder,
    encoder: train.Encoder,
    course: Course,
    seeds: dict[int, Sequence[int]],
    features: dict[int, Tensor],
) -> train.Decoder:
    """Teach projector and decoder conversations at every size; returns the averaged weights.

    Args:
        seeds, features: of the scenes of each size.
    """
    path = work / "decoder.pt"
    if path.exists():
        decoder.load_state_dict(torch.load(path))
        return decoder
    torch.manual_seed(train.SEED)
    average = copy.deepcopy(decoder).requires_grad_(False)
    optimizers = train.decoder_optimizers(decoder)
    for layer in decoder.layers:
        layer.compile(dynamic=True)  # a fifth faster
    by_count = {size: rows_by_count(seeds[size]) for size in course.sizes}
    started, losses = time.time(), {size: [] for size in course.sizes}
    for step in range(course.steps):
        train.set_rates(optimizers, course.share * train.cosine_rate(step, course.steps, warm_up=60))
        rng = random.Random(f"{course.name} {train.SEED} {step}")
        torch.manual_seed(step)
        size = rng.choices(list(course.sizes), list(course.sizes.values()))[0]
        rows = train.pick_seeds(train.EASY_STEPS, PLAN.crowds, by_count[size], rng)
        batch = train.batch_of(encoder, [seeds[size][row] for row in rows], rng, PLAN.kinds, tokens_of(size))
        loss = train.answer_loss(decoder, features[size][rows].float(), batch, rng)
        train.learn(loss, decoder, optimizers)
        train.average_in(average, decoder, step + 1, course.average)
        losses[size].append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"decoder {step + 1} {recent(losses)} {time.time() - started:.0f} s", flush=True)
    train.save(path, **average.state_dict())
    return average


def rows_by_count(seeds: Sequence[int]) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = {count: [] for count in range(1, 5)}
    for row, seed in enumerate(seeds):
        rows[len(scenes.make_scene(seed).things)].append(row)
    return rows


COURSE = Course("sizes", 1_200, 0.6, 0.99, {size: plan.decoder_share for size, plan in SIZES.items()})


# 5. Export


def export(checkpoint: Path, folder: Path, tower: nn.Module, decoder: train.Decoder) -> None:
    """Write the checkpoint as it came, with the new weights and the sizes that it knows now."""
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)  # the package's own is there
    state = tower.state_dict()
    weights = {apples: state[name] for name, apples in names_of(tower).items()}
    weights |= {f"model.{name}": value for name, value in decoder.state_dict().items()}
    weights = {name: value.detach().half().contiguous() for name, value in weights.items()}
    assert all(value.isfinite().all() for value in weights.values()), "a weight is too large for float16"
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    settings["trained_image_sizes"] = list(SIZES)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


def read_arguments(about: str, before: str) -> argparse.Namespace:
    """The command line of a script that goes on from the checkpoint of the one before it."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help=f"what {before} wrote")
    parser.add_argument("--work", type=Path, required=True, help="folder for each stage's results")
    parser.add_argument("--export", type=Path, required=True, help="folder for the new checkpoint")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    return args


def main() -> None:
    args = read_arguments(__doc__, "fuse.py")
    pictures = {size: train.render(seeds_of(size), args.work / f"{size}.u8", size) for size in SIZES}
    scribbles = train.render(range(SCRIBBLES), args.work / "scribbles.u8", TEACHER, scribble)
    held_out = [scenes.HELD_OUT_SEEDS[number] for number in CHECK]
    check = {size: train.render(held_out, args.work / f"check-{size}.u8", size) for size in SIZES}
    tower, decoder = load_demo(args.checkpoint)
    decoder.requires_grad_(False)
    teacher = Teacher(tower, decoder.mm_projector, pictures[TEACHER], args.work / "taught.pt")
    tower = train_tower(args.work, teacher, pictures, scribbles)
    seen = {
        size: train.features_of(tower, array[: SIZES[size].scenes], args.work / f"features-{size}.pt")
        for size, array in pictures.items()
    }
    checked = {size: train.features_of(tower, array, args.work / f"check-{size}.pt") for size, array in check.items()}
    encoder = train.Encoder(train.make_tokenizer(args.work / "tokenizer.json"))
    seeds = {size: seeds_of(size)[: plan.scenes] for size, plan in SIZES.items()}
    decoder = train_decoder(args.work, decoder.requires_grad_(True), encoder, COURSE, seeds, seen)
    for size, features in checked.items():
        print(f"decoder at {size} {train.report(decoder, encoder, features, turns=2, seeds=held_out)}", flush=True)
    export(args.checkpoint, args.export, tower, decoder)


if __name__ == "__main__":
    main()
