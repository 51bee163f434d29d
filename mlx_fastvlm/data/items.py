"""One image of a data set, on its way from a source to a sink."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image

from ..errors import one_line
from ..processing.fetch import fetch
from ..processing.images import FORMATS

SAMPLE_LIMIT = 64 * 2**20  # bytes of one image with all that an archive has beside it


@dataclass
class Item:
    """An image and what is known of it.

    Attributes:
        key: what its record is found by, valid Unicode.
        source: where the image is: a path, a URL or bytes; see :func:`mlx_fastvlm.load_image`.
        prompt: its own, instead of the one for all.
        files: what an archive has of it, extension -> bytes, the image included.
        error: why there is no image, where the source knows already.
        loader: reads ``source`` and ``files``, which archives do only for what is wanted.
        public: whether a stranger named the URL, which then must lead to a public address.
        more: further images that the same prompt is about, in order; an error of theirs is this one's.
    """

    key: str
    source: Any = None
    prompt: str | None = None
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    error: str | None = None
    public: bool = False
    loader: Callable[[], tuple[bytes, dict[str, bytes]]] | None = field(default=None, repr=False)
    more: list[Item] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        # A name of a file need not be UTF-8; what is written must be, and must be the same when it is read again.
        self.key = self.key.encode("utf-8", "backslashreplace").decode()

    @property
    def nbytes(self) -> int:
        held = len(self.source) if isinstance(self.source, bytes) else 0
        return max(held, sum(map(len, self.files.values()))) + sum(item.nbytes for item in self.more)

    @property
    def path(self) -> Path | None:
        """The image's file, where it is one of this machine."""
        return self.source if isinstance(self.source, Path) else None

    def load(self) -> None:
        """Read what an archive has, before the next item is asked for; what can't be read is this item's error."""
        loader, self.loader = self.loader, None
        if loader is not None:
            try:
                self.source, self.files = loader()
            except OSError as error:
                self.error = f"{one_line(self.key)} can't be read ({error.strerror or error}); check the archive."

    def opened(self) -> Any:
        """The image as a source that can be read without harm."""
        return fetch(self.source, private=False) if self.public else self.source


def image_suffixes() -> set[str]:
    """Extensions of files that are taken for images, with their dots."""
    known = {end for end, kind in PIL.Image.registered_extensions().items() if kind in FORMATS}
    return known | {".heic", ".heif"}


def is_url(text: str) -> bool:
    return text[:8].lower().startswith(("http://", "https://"))
