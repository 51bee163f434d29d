"""Draws docs/figures/front.png, the README's figure: an example beside what a terminal really shows about it.

    python docs/figures/front.py

The commands are run, and what they print is drawn as it is, wrapped. Needs matplotlib, for its fonts.
"""

import subprocess
import sys
import textwrap
from pathlib import Path

from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parent.parent.parent
IMAGE = "examples/images/shapes-1.png"
ASK = [IMAGE, "What are these?", "--model", "demo"]
CHAT = ["chat", IMAGE, "--model", "demo"]
QUESTIONS = ["What colour is the star?", "What is to the left of it?", "Can you see an orange square?"]

SIZE = 26  # pixels of the type
COLUMNS = 74
PADDING = 36
BACKGROUND, BAR, INK, PROMPT, DIM = "#15191f", "#2a303a", "#e6e9ee", "#7cc7ff", "#93a0ae"


def run(command, **options):
    done = subprocess.run(
        [sys.executable, "-m", "mlx_fastvlm", *command], cwd=ROOT, capture_output=True, text=True, **options
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return done


def quoted(command):
    return "fastvlm " + " ".join(f'"{word}"' if " " in word else word for word in command)


def session():
    """(line, colour) of everything on the terminal."""
    asked = run(ASK)
    yield f"$ {quoted(ASK)}", PROMPT
    yield asked.stdout.strip(), INK
    yield asked.stderr.strip(), DIM
    yield "", INK
    yield f"$ {quoted(CHAT)}", PROMPT
    # Neither its prompt nor what was typed is there where the input is no terminal, only a line for each answer.
    talk = run(CHAT, input="\n".join([*QUESTIONS, "/quit\n"]))
    for line in talk.stderr.splitlines():
        yield line, DIM
    for question, answer in zip(QUESTIONS, talk.stdout.splitlines()):
        yield f"> {question}", PROMPT
        yield answer.strip(), INK


def draw(lines):
    font = ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"), SIZE)
    wrapped = [
        (part, colour)
        for line, colour in lines
        for part in textwrap.wrap(line, COLUMNS, subsequent_indent="  ", break_on_hyphens=False) or [""]
    ]
    width, height = int(COLUMNS * font.getlength("m")) + 2 * PADDING, int(len(wrapped) * SIZE * 1.42) + 110
    left = height + 24  # the image is as high as the terminal
    image = Image.new("RGBA", (left + width, height))
    image.paste(Image.open(ROOT / IMAGE).resize((height, height), Image.Resampling.LANCZOS))
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((left, 0, image.width - 1, height - 1), 18, fill=BACKGROUND)
    pen.rounded_rectangle((left, 0, image.width - 1, 48), 18, fill=BAR, corners=(True, True, False, False))
    for i, colour in enumerate(("#ff5f57", "#febc2e", "#28c840")):
        pen.ellipse((left + 22 + 34 * i, 16, left + 40 + 34 * i, 34), fill=colour)
    for i, (line, colour) in enumerate(wrapped):
        pen.text((left + PADDING, 72 + int(i * SIZE * 1.42)), line, font=font, fill=colour)
    return image


if __name__ == "__main__":
    draw(session()).save(Path(__file__).parent / "front.png", optimize=True)
