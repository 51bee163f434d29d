"""Draws docs/figures/quantization.svg from the table in docs/conversion.md: KL divergence against size.

python docs/figures/quantization.py
"""

import math
import re
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
ROW = re.compile(r"^\| (?P<name>[^|]+) \| (?P<size>[\d.]+) MB \| [\d.]+ \| (?P<kl>[\d.e-]+) \|", re.M)
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 400, 90, 20, 20, 50
POWERS = range(-6, -1)
SIZES = (4, 5, 6, 7, 8)
FONT = 'font-family="sans-serif" font-size="13"'
BEFORE = ("nvfp4",)  # where the label would lie on another's


def rows():
    """(name, megabytes, divergence) of each precision."""
    table = (HERE.parent / "conversion.md").read_text(encoding="utf-8")
    return [(found["name"].strip(), float(found["size"]), float(found["kl"])) for found in ROW.finditer(table)]


def draw():
    """The figure, as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for power in POWERS:
        y = _y(10.0**power)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        parts.append(_text(LEFT - 8, y + 4, f"1e{power}", "end"))
    for size in SIZES:
        parts.append(_text(_x(size), HEIGHT - BOTTOM + 20, f"{size} MB"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "size of the checkpoint"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<g transform="rotate(-90 18 {middle})">{_text(18, middle, "KL divergence (nats)")}</g>')
    for name, size, kl in rows():
        x, y = _x(size), _y(kl)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#3d7ee8"/>')
        side = ("end", -9) if size > 7 or name in BEFORE else ("start", 9)
        parts.append(_text(x + side[1], y + 4, name, side[0]))
    return "\n".join([*parts, "</svg>", ""])


def _x(size):
    return LEFT + (size - 4) / 4.3 * (WIDTH - LEFT - RIGHT)


def _y(kl):
    share = (math.log10(kl) - POWERS[0]) / (POWERS[-1] - POWERS[0])
    return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)


def _text(x, y, words, anchor="middle"):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


if __name__ == "__main__":
    (HERE / "quantization.svg").write_text(draw(), encoding="utf-8")
