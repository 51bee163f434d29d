"""Images in the terminal itself, where it can show them: kitty's protocol and iTerm2's."""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import PIL.Image

if TYPE_CHECKING:
    from ..processing.prepared import Image

SIDE = 256  # pixels that are shown
_PIECE = 4096  # bytes of kitty's longest message


def protocol(environment: Mapping[str, str] = os.environ) -> str | None:
    """What the terminal on stderr is known to understand: "kitty", "iterm2", or None."""
    if not sys.stderr.isatty() or "TMUX" in environment:  # which passes neither on
        return None
    program, term = environment.get("TERM_PROGRAM", ""), environment.get("TERM", "")
    if "kitty" in term or "ghostty" in (term + program).lower():
        return "kitty"
    return "iterm2" if program in ("iTerm.app", "WezTerm") else None


def inline(image: Image, kind: str) -> str:
    """What to write for the terminal to show an image as the model sees it, small."""
    thumbnail = PIL.Image.fromarray(image.pixels)
    thumbnail.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    thumbnail.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    if kind == "iterm2":
        return f"\x1b]1337;File=inline=1;size={len(file.getvalue())};width={thumbnail.width}px:{data}\x07\n"
    pieces = [data[at : at + _PIECE] for at in range(0, len(data), _PIECE)]
    heads = ["f=100,a=T,q=2," if i == 0 else "" for i in range(len(pieces))]
    more = [int(i + 1 < len(pieces)) for i in range(len(pieces))]
    return "".join(f"\x1b_G{head}m={m};{piece}\x1b\\" for head, m, piece in zip(heads, more, pieces)) + "\n"
