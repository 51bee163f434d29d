"""Random prompts and images of a case: what is said, in the form that its template takes."""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests.support.differential.draws import Case
from tests.support.differential.folders import SPECIAL, template

PIECES = (
    "What is this?", " the", " is", "a", " ", "  ", "\n", "\n\n", "\t", "1", "2024", " 42.5", "it's", "I'LL", "é",
    "e\u0301", "\ufb01", "東京", "مرحبا", "👩‍👩‍👧", "\u200b", "\u00a0", "<", "|>", "<|", "<|im", "_end|>",
    "image>", "[INST]", "</s>", "{{ 1 }}",
    "{%", "\\n", "'", '"', "&amp;", "\r\n", "ß", "Ünï", "nation", "rest", "inner", "e" * 9, "=====", "...",
    "\x00", "\x7f", "\ue000", "ǅ", "½", "①", "ﷺ",
)  # fmt: skip
MODES = ("RGB", "RGB", "RGB", "L")


@dataclass
class Row:
    """One prompt: chat messages, or a text in which special tokens count; and its images."""

    messages: list[dict] | None
    text: str | None
    images: list[Image.Image]


def rows(case: Case) -> list[Row]:
    rng = random.Random(case["prompt"])
    return [row(case, rng, case["images"] if number == 0 else rng.randrange(3)) for number in range(case["rows"])]


def row(case: Case, rng: random.Random, images: int) -> Row:
    pictures = [image(rng) for _ in range(images)]
    if case["said"] == "text":
        return Row(None, marked(said(rng, (*PIECES, *SPECIAL[:3]), ("<image>",)), images, rng), pictures)
    return Row(messages(case, rng, images), None, pictures)


def said(rng: random.Random, pieces=PIECES, without=SPECIAL) -> str:
    """A text; in a conversation without special tokens, which end a turn there and are plain text here."""
    text = "".join(rng.choice(pieces) for _ in range(rng.choice((1, 2, 5, 12))))
    while any(word in text for word in without):
        for word in without:
            text = text.replace(word, "")
    return text or "x"


def marked(text: str, images: int, rng: random.Random) -> str:
    """With images: some before it, each on a line of its own, as this package writes them there; the others inside."""
    first = sum(rng.random() < 0.7 for _ in range(images))
    for _ in range(images - first):
        place = rng.randint(1, len(text))
        while "<image>" in text[max(0, place - 6) : place + 6]:  # not inside of another
            place += 1
        text = text[:place] + "<image>" + text[place:]
    return "<image>\n" * first + text


def messages(case: Case, rng: random.Random, images: int) -> list[dict]:
    """A conversation, perhaps with a system prompt; contents are lists of parts where the template wants them."""
    parts = "part" in template(case)
    roles = ["user"] + ["assistant", "user"] * rng.choice((0, 0, 1))
    places = [rng.randrange(0, len(roles), 2) for _ in range(images)]
    told = [message(role, said(rng), places.count(number), parts, rng) for number, role in enumerate(roles)]
    if rng.random() < 0.3:
        told.insert(0, message("system", said(rng), 0, parts, rng))
    return told


def message(role: str, text: str, images: int, parts: bool, rng: random.Random) -> dict:
    if not parts:
        return {"role": role, "content": marked(text, images, rng)}
    content = [{"type": "image"}] * images
    content.insert(rng.randrange(images + 1), {"type": "text", "text": text})
    return {"role": role, "content": content}


def image(rng: random.Random) -> Image.Image:
    """Noise over a slope, of any size."""
    width, height = (rng.choice((rng.randint(1, 80), rng.randint(60, 300))) for _ in range(2))
    random = np.random.RandomState(rng.randrange(2**31))
    values = random.randint(0, 60, (height, width, 3)) + np.linspace(0, 195, width)[None, :, None]
    return Image.fromarray(values.astype(np.uint8)).convert(rng.choice(MODES))
