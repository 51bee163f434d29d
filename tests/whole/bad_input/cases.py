"""What a bad input is: a command line, words of its error, and its exit code; and ways to say so briefly."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mlx_fastvlm.generate import main as generate_main
from tests.support import small

IMAGE = Image.fromarray(small.odd_image(40, 30))


class Place:
    """Where a case happens: a folder to write to, good checkpoints, and a server."""

    def __init__(self, folder, checkpoint, url):
        self.folder, self._checkpoint, self.url = folder, checkpoint, url
        self.good = str(checkpoint("apple"))

    def file(self, name, content=b""):
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def fifo(self):
        os.mkfifo(self.folder / "fifo.png")
        return str(self.folder / "fifo.png")

    def checkpoint(self, change, layout="apple", **how):
        """A copy of a small checkpoint that ``change`` has had its way with."""
        folder = Path(shutil.copytree(self._checkpoint(layout, **how), self.folder / "checkpoint"))
        change(folder)
        return str(folder)


@dataclass
class Case:
    words: str
    arguments: object  # of the place: the command line without what every one has
    code: int = 1
    stdin: bytes = b""
    command: object = generate_main


def option(words, *flags, code=2, **how):
    return Case(words, lambda place: list(flags), code=code, **how)
