"""The demo checkpoint's world: pictures of a few coloured shapes, and questions about them.

Everything follows from a seed. `make_scene(seed)` decides what is in a picture, `draw(scene, pixels)` paints
it at any size, and `questions(scene, rng, count)` asks about it; every question has exactly one right answer.

    scene = make_scene(HELD_OUT_SEEDS[0])
    draw(scene, 512).save("scene.png")
    for question in questions(scene, random.Random(0), 3):
        print(question.kind, question.text, question.answer)

The checkpoint is trained on `TRAINING_SEEDS` only; `HELD_OUT_SEEDS` are for measuring.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

TRAINING_SEEDS = range(10_000_000)
HELD_OUT_SEEDS = range(10_000_000, 20_000_000)

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLOURS = {
    "red": (220, 35, 40),
    "orange": (248, 135, 15),
    "yellow": (250, 220, 30),
    "green": (35, 160, 65),
    "cyan": (40, 205, 220),
    "blue": (35, 75, 220),
    "purple": (130, 45, 180),
    "pink": (248, 125, 195),
}
RADII = {"small": (0.05, 0.06), "big": (0.095, 0.115)}  # of the circle around a shape; 1 is the longer side
GRID = 4  # a picture is seen as 4 x 4 image tokens, so positions are told apart by cell
WANDER = 0.22  # how far a centre may stray from its cell's centre, in cells
GAP = 0.02  # the least distance between two shapes, and to the border
NUMBERS = ("Zero", "One", "Two", "Three", "Four")

# A square on its corner is a diamond and a slanted cross an X, so these turn only a little.
TURNS = {"circle": 0, "square": 18, "triangle": 180, "star": 180, "cross": 18, "heart": 25}  # degrees, either way


# What is in a picture


@dataclass(frozen=True)
class Thing:
    """One shape. `x`, `y` and `radius` are fractions of the picture's longer side, once padded to a square."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    turn: float  # degrees
    tint: tuple[int, int, int]  # the RGB values it is painted with, close to its colour's

    @property
    def column(self) -> int:
        return int(self.x * GRID)

    @property
    def row(self) -> int:
        return int(self.y * GRID)

    @property
    def name(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """One picture: its things in reading order (row by row) and what it is painted on."""

    seed: int
    things: tuple[Thing, ...]
    width: float  # of the picture; the longer side is 1
    height: float
    background: str  # a key of BACKGROUNDS
    tints: tuple[tuple[int, int, int], tuple[int, int, int]]  # the background's two colours


def make_scene(seed: int, most_things: int = 4) -> Scene:
    """The scene of a seed: one to `most_things` shapes that neither touch nor share a cell."""
    rng = random.Random(seed)
    width, height = _proportions(rng)
    count = rng.randint(1, most_things)
    things: list[Thing] = []
    palette = [rng.choice(list(COLOURS)) for _ in range(3)]  # few colours and shapes a picture: they repeat,
    kinds = [rng.choice(SHAPES) for _ in range(3)]  # and so telling two things apart takes both
    while len(things) < count:
        thing = _make_thing(rng, palette, kinds)
        for _ in range(40):  # places before kinds: else the big ones, which fit in fewer places, would be rare
            if _fits(thing, things, width, height):
                things.append(thing)
                break
            thing = replace(thing, x=_wander(rng), y=_wander(rng))
    things.sort(key=lambda thing: (thing.row, thing.column))
    background = rng.choice(list(BACKGROUNDS))
    return Scene(seed, tuple(things), width, height, background, _background_tints(rng))


def empty_scene(seed: int, rng: random.Random) -> Scene:
    """A square background with nothing on it."""
    return Scene(seed, (), 1.0, 1.0, rng.choice(list(BACKGROUNDS)), _background_tints(rng))


def _proportions(rng: random.Random) -> tuple[float, float]:
    """Most pictures are square, as what the model sees always is; the others get black bars."""
    if rng.random() < 0.7:
        return 1.0, 1.0
    short = rng.uniform(0.55, 0.95)
    return (1.0, short) if rng.random() < 0.5 else (short, 1.0)


def _make_thing(rng: random.Random, palette: list[str], kinds: list[str]) -> Thing:
    shape = rng.choice(kinds) if rng.random() < 0.6 else rng.choice(SHAPES)
    colour = rng.choice(palette) if rng.random() < 0.6 else rng.choice(list(COLOURS))
    size = rng.choice(list(RADII))
    return Thing(
        shape=shape,
        colour=colour,
        size=size,
        x=_wander(rng),
        y=_wander(rng),
        radius=rng.uniform(*RADII[size]),
        turn=rng.uniform(-TURNS[shape], TURNS[shape]),
        tint=_vary(rng, COLOURS[colour], 12),
    )


def _wander(rng: random.Random) -> float:
    """A coordinate somewhere in the middle of a row or column of cells."""
    return (rng.randrange(GRID) + 0.5 + rng.uniform(-WANDER, WANDER)) / GRID


def _fits(thing: Thing, others: list[Thing], width: float, height: float) -> bool:
    """Whether a thing lies inside the picture, clear of the others, and is unlike each of them."""
    inside = (
        abs(thing.x - 0.5) + thing.radius + GAP <= width / 2 and abs(thing.y - 0.5) + thing.radius + GAP <= height / 2
    )
    return inside and all(
        math.hypot(thing.x - other.x, thing.y - other.y) >= thing.radius + other.radius + GAP
        and (thing.row, thing.column) != (other.row, other.column)
        and (thing.shape, thing.colour) != (other.shape, other.colour)
        for other in others
    )


def _vary(rng: random.Random, colour: tuple[int, int, int], amount: int) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, value + rng.randint(-amount, amount))) for value in colour)
    return red, green, blue


def _background_tints(rng: random.Random) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Two close, pale or dark tints, greyish enough that no shape's colour can be mistaken for them."""
    level = rng.choice((rng.randint(222, 246), rng.randint(18, 50)))
    first = _vary(rng, (level, level, level), 11)
    return first, _vary(rng, first, 12)


# Painting it


def draw(scene: Scene, pixels: int = 512) -> Image.Image:
    """Paint a scene; its longer side becomes `pixels` long."""
    width, height = round(scene.width * pixels), round(scene.height * pixels)
    picture = _paint_background(scene, width, height)
    left, top = (pixels - width) / 2, (pixels - height) / 2  # of the picture inside its padded square
    for thing in scene.things:
        _paint_thing(picture, thing, pixels, left, top)
    return picture


def _paint_thing(picture: Image.Image, thing: Thing, pixels: int, left: float, top: float, smooth: int = 4) -> None:
    """Paint one shape, antialiased: its mask is drawn `smooth` times larger, then reduced."""
    x, y, radius = thing.x * pixels - left, thing.y * pixels - top, thing.radius * pixels
    reach = math.ceil(radius) + 2
    corner_x, corner_y = math.floor(x) - reach, math.floor(y) - reach
    mask = Image.new("L", ((2 * reach + 1) * smooth,) * 2, 0)
    cosine, sine = math.cos(math.radians(thing.turn)), math.sin(math.radians(thing.turn))
    outline = [
        (
            (x - corner_x + radius * (px * cosine - py * sine)) * smooth,
            (y - corner_y + radius * (px * sine + py * cosine)) * smooth,
        )
        for px, py in OUTLINES[thing.shape]
    ]
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    picture.paste(thing.tint, (corner_x, corner_y), mask.reduce(smooth))


def _round_outline(points: int = 72) -> list[tuple[float, float]]:
    angles = [2 * math.pi * i / points for i in range(points)]
    return [(0.9 * math.cos(angle), 0.9 * math.sin(angle)) for angle in angles]


def _star_outline() -> list[tuple[float, float]]:
    angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
    lengths = [1.0 if i % 2 == 0 else 0.44 for i in range(10)]
    return [(length * math.cos(angle), length * math.sin(angle)) for angle, length in zip(angles, lengths)]


def _heart_outline(points: int = 80) -> list[tuple[float, float]]:
    outline = []
    for i in range(points):
        t = 2 * math.pi * i / points
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        outline.append((x / 17, -(y + 2.5) / 17))
    return outline


_ARM = 0.3  # half the width of a cross's arm
OUTLINES = {  # corners within a circle of radius 1; y points down
    "circle": _round_outline(),
    "square": [(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)],
    "triangle": [(0.0, -1.0), (0.87, 0.5), (-0.87, 0.5)],
    "star": _star_outline(),
    "cross": [
        (-_ARM, -0.93), (_ARM, -0.93), (_ARM, -_ARM), (0.93, -_ARM), (0.93, _ARM), (_ARM, _ARM),
        (_ARM, 0.93), (-_ARM, 0.93), (-_ARM, _ARM), (-0.93, _ARM), (-0.93, -_ARM), (-_ARM, -_ARM),
    ],
    "heart": _heart_outline(),
}  # fmt: skip


def _paint_background(scene: Scene, width: int, height: int) -> Image.Image:
    """Blend the scene's two tints with one of the BACKGROUNDS."""
    noise = np.random.default_rng(scene.seed)
    blend = BACKGROUNDS[scene.background](noise, width, height)[..., None]
    first, second = (np.asarray(tint, dtype=np.float32) for tint in scene.tints)
    return Image.fromarray((first + (second - first) * blend + 0.5).clip(0, 255).astype(np.uint8))


def _plain(noise: np.random.Generator, width: int, height: int) -> np.ndarray:
    return np.zeros((height, width), dtype=np.float32)


def _gradient(noise: np.random.Generator, width: int, height: int) -> np.ndarray:
    angle = noise.uniform(0, 2 * math.pi)
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    return 0.5 + 2 * (math.cos(angle) * x + math.sin(angle) * y)


def _clouds(noise: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Soft blotches: a few random values, blown up."""
    cells = int(noise.integers(4, 20))
    values = noise.uniform(-0.8, 1.8, size=(cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC))


def _stripes(noise: np.random.Generator, width: int, height: int) -> np.ndarray:
    angle, waves = noise.uniform(0, math.pi), noise.uniform(4, 16)
    longer = max(width, height)
    x = np.arange(width, dtype=np.float32) / longer
    y = np.arange(height, dtype=np.float32)[:, None] / longer
    return 0.5 + 0.5 * np.sin(2 * math.pi * waves * (math.cos(angle) * x + math.sin(angle) * y))


def _grain(noise: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Fine noise, of the same coarseness at any size."""
    values = noise.uniform(-1, 2, size=(96, 96)).astype(np.float32)
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))


BACKGROUNDS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "plain": _plain,
    "gradient": _gradient,
    "clouds": _clouds,
    "stripes": _stripes,
    "grain": _grain,
}


# Asking about it


@dataclass(frozen=True)
class Question:
    kind: str  # a key of KINDS
    text: str
    answer: str


def questions(scene: Scene, rng: random.Random, count: int, kinds: dict[str, float] | None = None) -> list[Question]:
    """`count` questions about a scene, no text twice; `kinds` gives each kind's share (default: KINDS)."""
    shares = KINDS if kinds is None else kinds
    asked: dict[str, Question] = {}
    while len(asked) < count:
        kind = rng.choices(list(shares), weights=list(shares.values()))[0]
        question = ask(scene, rng, kind)
        if question is not None:
            asked.setdefault(question.text, question)
    return list(asked.values())


def ask(scene: Scene, rng: random.Random, kind: str) -> Question | None:
    """One question of a kind, or None where this scene (with this throw of the dice) has none."""
    found = _ASK[kind](scene, rng)
    return Question(kind, *found) if found else None


def describe(things: tuple[Thing, ...]) -> str:
    """'A big red circle, a small blue star and a small pink heart.'"""
    names = [f"a {thing.name}" for thing in things]
    sentence = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return sentence[0].upper() + sentence[1:] + "."


def casual(text: str, rng: random.Random) -> str:
    """The same question as typed in a hurry: no capital letter, no question mark, or neither."""
    style = rng.randrange(3)
    if style != 0:
        text = text[0].lower() + text[1:]
    return text if style == 1 else text.rstrip("?.")


def _ask_describe(scene: Scene, rng: random.Random) -> tuple[str, str]:
    return rng.choice(DESCRIBE), describe(scene.things)


def _ask_colour(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    thing = rng.choice(scene.things)
    which = _point_at(thing, scene, rng, hide="colour")
    return (_say(rng, COLOUR_OF, which=which), thing.colour.capitalize() + ".") if which else None


def _ask_shape(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    thing = rng.choice(scene.things)
    which = _point_at(thing, scene, rng, hide="shape")
    return (_say(rng, SHAPE_OF, which=which), f"A {thing.shape}.") if which else None


def _ask_size(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    thing = rng.choice(scene.things)
    which = _point_at(thing, scene, rng, hide="size")
    return (_say(rng, SIZE_OF, which=which), thing.size.capitalize() + ".") if which else None


def _ask_count(scene: Scene, rng: random.Random) -> tuple[str, str]:
    kind = rng.choice(("all", "shape", "colour", "size"))
    noun = rng.choice(NOUNS) + "s"
    if kind == "all":
        found, counted = scene.things, noun
    elif kind == "shape":
        shape = rng.choice(scene.things).shape if rng.random() < 0.75 else rng.choice(SHAPES)
        found, counted = [t for t in scene.things if t.shape == shape], _plural(shape)
    elif kind == "colour":
        colour = rng.choice(scene.things).colour if rng.random() < 0.75 else rng.choice(list(COLOURS))
        found, counted = [t for t in scene.things if t.colour == colour], f"{colour} {noun}"
    else:
        size = rng.choice(list(RADII))
        found, counted = [t for t in scene.things if t.size == size], f"{size} {noun}"
    return _say(rng, COUNT, things=counted), NUMBERS[len(found)] + "."


def _ask_exists(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    """Yes as often as no; most of the things that are not there share a word with one that is."""
    wanted = rng.random() < 0.5
    words = rng.choice((("colour", "shape"), ("colour", "shape"), ("shape",), ("colour",), ("size", "shape")))
    model = rng.choice(scene.things)
    values = {"size": model.size, "colour": model.colour, "shape": model.shape}
    if not wanted:
        changed = rng.sample(words, 1 if rng.random() < 0.75 else len(words))
        for word in changed:
            values[word] = rng.choice(_CHOICES[word])
    there = any(all(getattr(thing, word) == values[word] for word in words) for thing in scene.things)
    if there != wanted:
        return None
    noun = values["shape"] if "shape" in words else rng.choice(NOUNS)
    named = " ".join([values[word] for word in words if word != "shape"] + [noun])
    article = "an" if named[0] in "aeiou" else "a"
    return _say(rng, EXISTS, what=f"{article} {named}"), "Yes." if there else "No."


def _ask_beside(direction: str) -> Callable[[Scene, random.Random], tuple[str, str] | None]:
    """Asks what lies in a direction from a thing; there is a question only where at most one thing does."""

    def ask_beside(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
        thing = rng.choice(scene.things)
        which = _point_at(thing, scene, rng)
        found = tuple(other for other in scene.things if _LIES[direction](other, thing))
        if len(found) > 1 or (not found and rng.random() < 0.65):  # "Nothing." would be asked too often
            return None
        return _say(rng, BESIDE[direction], which=which), describe(found) if found else "Nothing."

    return ask_beside


_LIES: dict[str, Callable[[Thing, Thing], bool]] = {
    "left": lambda other, thing: other.column < thing.column,
    "right": lambda other, thing: other.column > thing.column,
    "above": lambda other, thing: other.row < thing.row,
    "below": lambda other, thing: other.row > thing.row,
}
_CHOICES = {"size": list(RADII), "colour": list(COLOURS), "shape": list(SHAPES)}


def _point_at(thing: Thing, scene: Scene, rng: random.Random, hide: str = "") -> str:
    """Words that only this thing answers to ('the big circle'), without the word `hide`; '' if there are none."""
    options = [words for words in _WORDINGS if hide not in words and _unique(thing, scene, words)]
    if not options:
        return ""
    words = rng.choice(options)
    if not words:
        return rng.choice(("it", f"the {rng.choice(NOUNS)}"))
    noun = thing.shape if "shape" in words else rng.choice(NOUNS)
    return " ".join(["the"] + [getattr(thing, word) for word in words if word != "shape"] + [noun])


_WORDINGS = (
    (), ("shape",), ("colour",), ("colour", "shape"), ("size", "shape"), ("size", "colour"),
    ("size", "colour", "shape"),
)  # fmt: skip


def _unique(thing: Thing, scene: Scene, words: tuple[str, ...]) -> bool:
    alike = [t for t in scene.things if all(getattr(t, word) == getattr(thing, word) for word in words)]
    return len(alike) == 1


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else shape + "s"


def _say(rng: random.Random, wordings: tuple[str, ...], **words: str) -> str:
    return rng.choice(wordings).format(**words, colour=rng.choice(("colour", "color")), noun=rng.choice(NOUNS))


NOUNS = ("shape", "object", "thing")
DESCRIBE = (
    "Describe the image.", "Describe the picture.", "Describe this image.", "Describe this picture.",
    "What is in the image?", "What is in the picture?", "What is in this image?", "What is in this picture?",
    "What are these?", "What is this?", "What do you see?", "What can you see?", "What does the picture show?",
    "What does this image show?", "Caption this.", "Caption this image.", "What shapes are there?",
    "What shapes do you see?", "Tell me what you see.", "Describe what you see.", "List the objects.",
)  # fmt: skip
COLOUR_OF = (
    "What {colour} is {which}?", "Which {colour} is {which}?", "What is the {colour} of {which}?",
    "Tell me the {colour} of {which}.", "Which {colour} does {which} have?",
)  # fmt: skip
SHAPE_OF = (
    "What shape is {which}?", "What is {which}?", "Which shape is {which}?", "What is the shape of {which}?",
    "What kind of shape is {which}?", "Which shape does {which} have?",
)  # fmt: skip
SIZE_OF = (
    "Is {which} big or small?", "Is {which} small or big?", "What size is {which}?", "How big is {which}?",
    "What is the size of {which}?",
)  # fmt: skip
COUNT = (
    "How many {things} are there?", "How many {things} do you see?", "How many {things} can you see?",
    "How many {things} are in the picture?", "How many {things} are in the image?", "Count the {things}.",
    "What is the number of {things}?",
)  # fmt: skip
EXISTS = (
    "Is there {what}?", "Is there {what} in the picture?", "Is there {what} in the image?", "Do you see {what}?",
    "Can you see {what}?", "Does the picture show {what}?", "Does the image have {what}?",
)  # fmt: skip
BESIDE = {
    "left": (
        "What is left of {which}?", "What is to the left of {which}?", "Which {noun} is left of {which}?",
        "Which {noun} is to the left of {which}?", "What do you see to the left of {which}?",
    ),
    "right": (
        "What is right of {which}?", "What is to the right of {which}?", "Which {noun} is right of {which}?",
        "Which {noun} is to the right of {which}?", "What do you see to the right of {which}?",
    ),
    "above": (
        "What is above {which}?", "Which {noun} is above {which}?", "What do you see above {which}?",
        "What is higher than {which}?",
    ),
    "below": (
        "What is below {which}?", "Which {noun} is below {which}?", "What do you see below {which}?",
        "What is under {which}?", "What is lower than {which}?",
    ),
}  # fmt: skip

KINDS = {  # the kinds of question, and how often each is asked
    "describe": 0.14, "colour": 0.12, "shape": 0.12, "size": 0.08, "count": 0.14, "exists": 0.14,
    "left": 0.065, "right": 0.065, "above": 0.065, "below": 0.065,
}  # fmt: skip
_ASK: dict[str, Callable[[Scene, random.Random], tuple[str, str] | None]] = {
    "describe": _ask_describe,
    "colour": _ask_colour,
    "shape": _ask_shape,
    "size": _ask_size,
    "count": _ask_count,
    "exists": _ask_exists,
    **{direction: _ask_beside(direction) for direction in BESIDE},
}


# The pictures in examples/images

EXAMPLES = tuple(HELD_OUT_SEEDS[i] for i in (1048, 1050, 1013, 1022, 1029, 1033, 1037, 1036))


def write_examples(folder: Path, pixels: int = 512) -> None:
    """Draw EXAMPLES, with one question of each kind that a picture allows, in questions.json."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = {}
    for number, seed in enumerate(EXAMPLES, start=1):
        scene, rng = make_scene(seed), random.Random(seed)
        draw(scene, pixels).save(folder / f"shapes-{number}.png", optimize=True)
        tries = {kind: [ask(scene, rng, kind) for _ in range(30)] for kind in KINDS}
        found = [next(filter(None, asked), None) for asked in tries.values()]
        listed[f"shapes-{number}.png"] = {
            "seed": seed,
            "questions": [{"kind": q.kind, "question": q.text, "answer": q.answer} for q in found if q],
        }
    (folder / "questions.json").write_text(json.dumps(listed, indent=2) + "\n")


if __name__ == "__main__":
    write_examples(Path(__file__).parent.parent / "images")
