"""Images and videos that a request names -> sources that this server may open."""

from __future__ import annotations

import os
import re
import stat
import urllib.parse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...processing.fetch import fetch
from ...processing.sources import open_source
from .errors import RequestError, from_preparing

if TYPE_CHECKING:
    from ...processing.messages import Prompt
    from .ask import Ask, Served

LOW_DETAIL = 512  # pixels
DETAILS = ("auto", "low", "high", "original")
MAX_URL = 8192  # characters


@dataclass(frozen=True)
class Source:
    """Where an image or a video of a request comes from, allowed but not opened yet.

    Attributes:
        text: a ``data:`` URI, a URL, or a path below the server's folder of images.
        kind: "image" or "video".
        where: the field that named it.
        root: the folder, of a path.
    """

    text: str
    kind: str
    where: str
    root: Path | None = None

    def read(self, limit: int) -> bytes:
        """The file; ``RequestError`` where it can't be read, or has more bytes than ``limit``. May wait for long."""
        try:
            data = self._read(limit)
        except Exception as error:
            told = from_preparing(error)
            raise RequestError(told.message, self.where, told.code, status=told.status, kind=told.kind) from None
        if len(data) > limit:
            raise self._too_large()
        return data

    def _read(self, limit: int) -> bytes:
        if self.root is not None:
            return self._read_file(self.root, limit)
        if _is_url(self.text):
            return fetch(self.text, self.kind, private=False)
        file, _ = open_source(self.text, self.kind)
        with file:
            return file.read()

    def _read_file(self, root: Path, limit: int) -> bytes:
        """A file that lies in the folder also once every link is followed."""
        try:
            top = os.path.realpath(root)
            path = os.path.realpath(os.path.join(top, self.text))
            if os.path.commonpath([top, path]) != top:
                raise _outside(self.where)
            # Neither a link that was put there meanwhile, nor a pipe that would keep us waiting.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, "rb") as file:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise self._no_such_file()
                if found.st_size > limit:
                    raise self._too_large()
                return file.read(limit + 1)
        except (OSError, ValueError):
            raise self._no_such_file() from None

    def _no_such_file(self) -> RequestError:
        return RequestError(f"There is no {self.kind} file of this name in the server's folder.", self.where)

    def _too_large(self) -> RequestError:
        return _too_large(self.where)


def _too_large(where: str) -> RequestError:
    return RequestError("The images have too many bytes for one request; scale them down or send fewer.", where)


def _outside(where: str) -> RequestError:
    return RequestError("The path leads out of the folder that --image-root names; give one inside of it.", where)


class Images:
    """The images of one request, as its fields are read."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._details: dict[str, str] = {}  # each with the first image that asks for it
        self._bytes = 0
        self.count = 0

    def image(self, text: str, where: str, detail: str | None = None) -> Source:
        """An image by what its part says."""
        self._details.setdefault(detail or "auto", where)
        self.count += 1
        self.check_count(self.count, where)
        return self._source(text, "image", where)

    def video(self, text: str, where: str) -> Source:
        return self._source(text, "video", where)

    def check_count(self, count: int, where: str) -> None:
        """``RequestError`` for more images than a request may have."""
        most = self._served.limits.max_images
        if count > most:
            raise RequestError(
                f"The request has more than {most} images, frames of animations and videos counted; send fewer.", where
            )

    @property
    def image_size(self) -> int | None:
        """The side in pixels that their ``detail`` asks for; None for the checkpoint's own."""
        if "low" not in self._details:
            return None
        larger = next((where for detail, where in self._details.items() if detail not in ("low", "auto")), None)
        if larger is not None:
            raise RequestError(
                "All images in a request have the same size here, so detail low can't be mixed with another one; send "
                "one detail for all, or give image_size.",
                larger,
            )
        return min(LOW_DETAIL, self._served.image_size)

    def _source(self, text: str, kind: str, where: str) -> Source:
        if text[:5].lower() == "data:":
            self._check_data_uri(text, where)
            return Source(text, kind, where)
        if len(text) > MAX_URL:
            raise RequestError(f"{where} is neither a data: URI nor a short URL; base64 needs data:...;base64,", where)
        if _is_url(text):
            if not self._served.limits.allow_urls:
                raise RequestError(
                    f"This server fetches no {kind}s from URLs (its flag --allow-urls is off); send a data: URI.", where
                )
            return Source(text, kind, where)
        return Source(self._path(text, kind, where), kind, where, self._served.limits.image_root)

    def _check_data_uri(self, text: str, where: str) -> None:
        if "," not in text[:1000]:
            raise RequestError(f"{where} must look like data:image/png;base64,....", where)
        self._bytes += len(text) // 4 * 3
        if self._bytes > self._served.limits.max_body:
            raise _too_large(where)

    def _path(self, text: str, kind: str, where: str) -> str:
        """The path below the server's folder that a text names."""
        if self._served.limits.image_root is None:
            raise RequestError(
                f"{where} is neither a data: URI nor a URL, and this server opens no files (its flag --image-root is "
                f"off); send the {kind} as data:image/png;base64,....",
                where,
            )
        path = text
        if text[:5].lower() == "file:":
            address = re.fullmatch(r"file:(?://(?:localhost)?(?=/)|(?!//))([^?#]*)", text, re.I)
            if address is None:
                raise RequestError(f"{where} must look like file:///folder/image.png, or be a path.", where)
            path = urllib.parse.unquote(address[1], errors="replace")
        elif re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", text):
            raise RequestError(f"{where} must be a data: URI, an http or https URL or a path.", where)
        if not path or "\0" in path:
            raise RequestError(f"{where} names no file; give a path.", where)
        if ".." in re.split(r"[/\\]", path):
            raise _outside(where)
        return path


def _is_url(text: str) -> bool:
    return text[:8].lower().startswith(("http://", "https://"))


def opened(ask: Ask, served: Served) -> Ask:
    """The same with the bytes of every image and video in it.

    Fetches URLs and reads files, so it belongs into a thread that may wait for minutes.

    Raises:
        RequestError: for what can't be read, or has too many bytes together.
    """
    left = served.limits.max_body

    def read(value: Any) -> Any:
        nonlocal left
        if not isinstance(value, Source):
            return value
        data = value.read(left)
        left -= len(data)
        return data

    def filled(prompt: Prompt) -> Prompt:
        if isinstance(prompt, str):
            return prompt
        return [{**message, "content": _with_images(message["content"], read)} for message in prompt]

    options = {name: read(value) for name, value in ask.options.items()}
    return replace(ask, prompt=filled(ask.prompt), others=tuple(map(filled, ask.others)), options=options)


def _with_images(content: Any, read: Any) -> Any:
    if not isinstance(content, list):
        return content
    return [{**part, "image": read(part["image"])} if part["type"] == "image" else part for part in content]
