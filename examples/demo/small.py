"""Teach the demo checkpoint more of its smallest size: at 192 pixels, 9 tokens have to speak for 16 cells.

    python examples/demo/small.py CHECKPOINT --work WORK --export FOLDER

CHECKPOINT is what sizes.py wrote. Needs what sizes.py needs. Each stage leaves its result in WORK, so a run that was
stopped goes on after the last stage that was done:

1. maps       what the tower's first stages, which stay as they are, make of new scenes, most of them at 192 pixels
2. tower      the later stages: a thing's token gives what such a thing's token gives at 256 pixels, on average
3. features   the new tower's view of those scenes
4. decoder    conversations about those features, as in sizes.py
5. export     as in sizes.py
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import scenes
import sizes
import train

STAGES = 3  # the tower's first stages, which take most of its time
FIRST = 1_000_000  # no scene that train.py or sizes.py drew

SIZES = {
    192: sizes.Size(200_000, 0.74, 64, 0.40),
    256: sizes.Size(30_000, 0.05, 32, 0.20),
    320: sizes.Size(5_000, 0.04, 24, 0.11),
    384: sizes.Size(5_000, 0.04, 16, 0.11),
    448: sizes.Size(3_000, 0.02, 12, 0.06),
    512: sizes.Size(3_000, 0.03, 12, 0.12),
}
SCRIBBLED_SHARE, SCRIBBLED_BATCH = 0.08, 32
TOWER_STEPS, TOWER_RATE, TOWER_AVERAGE = 8_000, 1e-3, 0.995
COURSE = sizes.Course("small", 1_300, 0.7, 0.99, {size: plan.decoder_share for size, plan in SIZES.items()})
DECODER_SCENES = 20_000  # at most, of a size
CHECK = scenes.HELD_OUT_SEEDS[21_000:22_000]  # evaluate.py asks about the first


def seeds_of(size: int) -> range:
    """The training scenes seen at a size."""
    start = FIRST + sum(plan.scenes for other, plan in SIZES.items() if other < size)
    return scenes.TRAINING_SEEDS[start : start + SIZES[size].scenes]


# 1. Maps

Draw = Callable[[int, int], np.ndarray]  # an image in bytes of a seed and a number of pixels


class Maps:
    """What the tower's first stages make of every seed's image, in float16, kept in a file."""

    def __init__(
        self,
        tower: nn.Module,
        seeds: Sequence[int],
        pixels: int,
        path: Path,
        draw: Draw = train._view_of_seed,
    ) -> None:
        look = partial(first_look, tower.stem, tower.stages[:STAGES], draw, pixels)
        chunks = [seeds[i : i + 32] for i in range(0, len(seeds), 32)]
        shape = (len(seeds), *look(seeds[:1]).shape[1:])
        if not path.exists():
            unfinished = path.with_suffix(".part")
            array = np.memmap(unfinished, np.float16, "w+", shape=shape)
            with get_context("spawn").Pool(initializer=torch.set_num_threads, initargs=(1,)) as pool:
                for i, seen in enumerate(pool.imap(look, chunks, chunksize=8)):
                    array[32 * i : 32 * i + len(seen)] = seen
            array.flush()
            unfinished.rename(path)
        self.array = np.memmap(path, np.float16, "r", shape=shape)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: Sequence[int] | slice) -> Tensor:
        return torch.from_numpy(np.array(self.array[rows], np.float32)).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def first_look(stem: nn.Module, stages: nn.Module, draw: Draw, pixels: int, seeds: Sequence[int]) -> np.ndarray:
    """(images, channels, height, width), in float16."""
    images = np.stack([draw(seed, pixels) for seed in seeds])
    return stages(stem(train.pixels_of(images))).half().numpy()


def views_of(tower: nn.Module, maps: Tensor) -> tuple[Tensor, Tensor]:
    """A tower's features before its last stage and after it, each (images, channels, height, width), of maps."""
    *between, last = tower.stages[STAGES:]
    for stage in between:
        maps = stage(maps)
    return maps, tower.final_conv(last(maps))


def see(tower: nn.Module, maps: Tensor) -> Tensor:
    """A tower's features of maps: (images, image tokens, VISION_WIDTH)."""
    return views_of(tower, maps)[1].flatten(2).transpose(1, 2)


@torch.no_grad()
def features_of(tower: nn.Module, maps: Maps, most: int) -> Tensor:
    rows = range(0, min(len(maps), most), 64)
    return torch.cat([see(tower, maps[row : min(row + 64, most)]).half() for row in rows])


# 2. The tower


@dataclass(frozen=True)
class Things:
    """The things of some scenes: four places a scene, the first `count` of them taken."""

    count: np.ndarray  # (scenes,)
    known: np.ndarray  # (scenes, 4, 4): shape, colour, size and cell
    at: np.ndarray  # (scenes, 4, 2): x and y

    @classmethod
    def of(cls, seeds: Sequence[int]) -> Things:
        shape = (len(seeds), 4)
        count, known, at = np.zeros(shape[0], int), np.zeros((*shape, 4), int), np.zeros((*shape, 2), np.float32)
        for row, seed in enumerate(seeds):
            things, targets = scenes.make_scene(seed).things, train.cell_targets(seed)
            count[row] = len(things)
            for place, thing in enumerate(things):
                known[row, place] = targets[thing.row * scenes.GRID + thing.column, 1:]
                at[row, place] = thing.x, thing.y
        return cls(count, known, at)

    def __getitem__(self, rows: Sequence[int] | slice) -> Things:
        return Things(self.count[rows], self.known[rows], self.at[rows])

    @property
    def there(self) -> np.ndarray:
        return np.arange(4) < self.count[:, None]


class Lesson:
    """What the checkpoint as it came sees at 256 pixels, by kind of thing.

    `wanted` is the mean of the projected features over all things of one shape, colour, size and cell, and `empty`,
    for each cell, over all scenes without a thing there; `heads` tell things apart by their features.
    """

    def __init__(self, tower: nn.Module, projector: nn.Module, maps: Maps, things: Things) -> None:
        self.projector = projector
        with torch.no_grad():
            seen = projector(features_of(tower, maps, len(maps)).float())
        scene, place = np.nonzero(things.there)
        known, cells = torch.from_numpy(things.known[scene, place]), things.known[scene, place, 3]
        features = seen[scene, cells]
        taken = torch.zeros(seen.shape[:2], dtype=torch.bool)
        taken[scene, cells] = True
        self.empty = torch.stack([seen[~taken[:, cell], cell].mean(0) for cell in range(train.CELLS)])
        self.scale = seen.var()
        self.wanted = torch.zeros(kind_of(known.new_tensor([[n - 1 for n in sizes.ANSWERS]])).item() + 1, train.HIDDEN)
        kinds = kind_of(known)
        counted = torch.zeros(len(self.wanted)).index_add(0, kinds, torch.ones(len(kinds)))
        self.wanted = self.wanted.index_add(0, kinds, features) / counted.clamp(min=1)[:, None]
        assert counted.min() > 0, "more scenes are needed: there is a kind of thing that none of them has"
        self.heads = sizes.Heads(features, known, self.scale, steps=600)

    @torch.no_grad()
    def settle(self, seen: Tensor, things: Things, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which token speaks for which thing: the scene, place and token of each thing.

        A thing belongs to the token that already speaks for it best; distance counts too (sizes.PULL).
        """
        side = size // train.PATCH
        empty = self.empty[sizes.cells_under(side)]
        wanted = self.wanted[kind_of(torch.from_numpy(things.known))]
        # The mean of (seen - wanted)^2 less that of (seen - empty)^2: seen^2 cancels.
        errors = (wanted.square().sum(-1)[..., None] - 2 * torch.einsum("std,spd->spt", seen, wanted)) / train.HIDDEN
        errors -= (empty.square() - 2 * seen * empty).mean(-1)[:, None]
        errors = (errors / self.scale).numpy() + sizes.PULL * distances(things.at * side, side)
        pairs = [linear_sum_assignment(errors[row, :count]) for row, count in enumerate(things.count)]
        scene = np.repeat(np.arange(len(pairs)), things.count)
        return scene, np.concatenate([place for place, _ in pairs]), np.concatenate([token for _, token in pairs])

    def loss(self, features: Tensor, things: Things, size: int) -> Tensor:
        """Of a tower's features (images, tokens, width): each thing has one token, the other tokens are empty."""
        seen = self.projector(features)
        scene, place, token = self.settle(seen, things, size)
        known = torch.from_numpy(things.known[scene, place])
        wanted = self.empty[sizes.cells_under(size // train.PATCH)].repeat(len(seen), 1, 1)
        full = torch.zeros(seen.shape[:2], dtype=torch.bool)
        wanted[scene, token] = self.wanted[kind_of(known)]
        full[scene, token] = True
        errors = (seen - wanted).square().mean(-1) / self.scale
        misread = self.heads.misread(seen[scene, token], known)
        return errors[full].mean() + errors[~full].mean() + sizes.HEADS * misread

    @torch.no_grad()
    def check(self, tower: nn.Module, maps: Maps, things: Things, size: int) -> dict[str, float]:
        """Over held-out scenes: the loss, the share of things of which the heads say all right, and of whole scenes."""
        features = features_of(tower, maps, len(maps)).float()
        seen = self.projector(features)
        scene, place, token = self.settle(seen, things, size)
        said = torch.stack([part.argmax(-1) for part in self.heads.say(seen[scene, token])], dim=-1).numpy()
        right = (said == things.known[scene, place]).all(-1)
        whole = np.ones(len(seen), bool)
        np.logical_and.at(whole, scene, right)
        found = {"loss": self.loss(features, things, size), "things": right.mean(), "scenes": whole.mean()}
        return {name: round(float(value), 4) for name, value in found.items()}


def kind_of(known: Tensor) -> Tensor:
    """One number for a thing's shape, colour, size and cell."""
    shape, colour, size, cell = known.unbind(-1)
    return ((shape * sizes.ANSWERS[1] + colour) * sizes.ANSWERS[2] + size) * sizes.ANSWERS[3] + cell


def distances(at: np.ndarray, side: int) -> np.ndarray:
    """Of things at (scenes, 4, 2), in tokens, from each token's square, squared: (scenes, 4, tokens)."""
    centres = np.arange(side) + 0.5
    away = (np.abs(centres - at[..., None]) - 0.5).clip(min=0) ** 2  # (scenes, 4, 2, side)
    return (away[:, :, 1, :, None] + away[:, :, 0, None, :]).reshape(*at.shape[:2], -1)


def train_tower(
    work: Path, came: nn.Module, lesson: Lesson, maps: dict[int, Maps], scribbles: Maps, check: dict[int, Maps]
) -> nn.Module:
    """Teach the later stages of a copy of the tower that came; returns its averaged weights."""
    path = work / "tower.pt"
    tower = copy.deepcopy(came)
    if path.exists():
        tower.load_state_dict(torch.load(path))
        return tower.eval()
    learnt = nn.ModuleList([*tower.stages[STAGES:], tower.final_conv]).requires_grad_(True)
    average = copy.deepcopy(tower).requires_grad_(False)
    followed = nn.ModuleList([*average.stages[STAGES:], average.final_conv])
    optimizer = torch.optim.AdamW(learnt.parameters(), lr=TOWER_RATE, weight_decay=0.02)
    shares = {size: plan.tower_share for size, plan in SIZES.items()} | {"scribbles": SCRIBBLED_SHARE}
    things = {size: Things.of(seeds_of(size)) for size in SIZES}
    checked = Things.of(CHECK)
    started, losses = time.time(), {lesson: [] for lesson in shares}
    for step in range(TOWER_STEPS):
        train.set_rates([optimizer], train.cosine_rate(step, TOWER_STEPS, warm_up=30))
        rng = random.Random(f"small tower {train.SEED} {step}")
        kind = rng.choices(list(shares), list(shares.values()))[0]
        if kind == "scribbles":
            rows = sorted(rng.sample(range(len(scribbles)), SCRIBBLED_BATCH))
            with torch.no_grad():
                wanted = views_of(came, scribbles[rows])
            with train.fast():
                seen = views_of(tower, scribbles[rows])
            loss = sizes.unlike(seen, wanted)
        else:
            rows = sorted(rng.sample(range(len(maps[kind])), SIZES[kind].tower_batch))
            with train.fast():
                features = see(tower, maps[kind][rows])
            loss = lesson.loss(features.float(), things[kind][rows], kind)
        train.learn(loss, learnt, [optimizer])
        train.average_in(followed, learnt, step + 1, TOWER_AVERAGE)
        losses[kind].append(loss.item())
        if (step + 1) % 100 == 0:
            print(f"tower {step + 1} {sizes.recent(losses)} {time.time() - started:.0f} s", flush=True)
        if step % 1_000 == 0 or step + 1 == TOWER_STEPS:
            for size in SIZES:
                print(f"check at {size} {lesson.check(average, check[size], checked, size)}", flush=True)
    train.save(path, **average.state_dict())
    return average


def main() -> None:
    args = sizes.read_arguments(__doc__, "sizes.py")
    tower, decoder = sizes.load_demo(args.checkpoint)
    tower.requires_grad_(False)
    decoder.requires_grad_(False)
    started = time.time()
    check = {size: Maps(tower, CHECK, size, args.work / f"check-{size}.maps") for size in SIZES}
    scribbles = Maps(tower, range(sizes.SCRIBBLES), sizes.TEACHER, args.work / "scribbles.maps", sizes.scribble)
    maps = {size: Maps(tower, seeds_of(size), size, args.work / f"{size}.maps") for size in sorted(SIZES)[::-1]}
    print(f"maps {time.time() - started:.0f} s", flush=True)
    torch.manual_seed(train.SEED)
    lesson = Lesson(tower, decoder.mm_projector, maps[sizes.TEACHER], Things.of(seeds_of(sizes.TEACHER)))
    tower = train_tower(args.work, tower, lesson, maps, scribbles, check)
    seen = {size: features_of(tower, maps[size], DECODER_SCENES) for size in SIZES}
    checked = {size: features_of(tower, maps, 300) for size, maps in check.items()}
    encoder = train.Encoder(train.make_tokenizer(args.work / "tokenizer.json"))
    seeds = {size: seeds_of(size)[:DECODER_SCENES] for size in SIZES}
    decoder = sizes.train_decoder(args.work, decoder.requires_grad_(True), encoder, COURSE, seeds, seen)
    for size, features in checked.items():
        print(f"decoder at {size} {train.report(decoder, encoder, features, turns=2, seeds=CHECK)}", flush=True)
    sizes.export(args.checkpoint, args.export, tower, decoder)


if __name__ == "__main__":
    main()
