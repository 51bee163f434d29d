"""The text of each image in a ``.txt`` file beside it, where trainers of image models look for it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import atomic_file
from .lines import Keep, LineSink, Record

if TYPE_CHECKING:
    from .items import Item


class TextSink:
    """``photo.txt`` beside ``photo.jpg``; the records themselves in a hidden file of lines in the folder.

    A ``.txt`` file that no record is about is somebody else's, and stays as it is: its image's record is an error.

    Args:
        folder: which keys are paths below.
        lines: the file of lines.
        name: goes before ``.txt``.
    """

    keeps_images = False

    def __init__(self, folder: Path, lines: Path, name: str | None) -> None:
        self._folder, self._end = folder, f".{name}.txt" if name else ".txt"
        self._lines = LineSink(lines)
        try:
            for record in self._lines.records():  # the process may have ended between a record and its text
                image = self._image(record)
                if image is not None and image.is_file() and not os.path.lexists(self._beside(image)):
                    self._write(image, record)
        except BaseException:
            self._lines.close()
            raise

    def _image(self, record: Record) -> Path | None:
        """A record's image; None where its key leads out of the folder, whoever wrote that."""
        key = record["key"]
        return None if os.path.isabs(key) or ".." in key.split("/") or "\0" in key else self._folder / key

    def _beside(self, image: Path) -> Path:
        return image.with_suffix(self._end)

    def _write(self, image: Path, record: Record) -> None:
        text = record.get("text", record.get("choice"))
        if "json" in record:
            text = json.dumps(record["json"], ensure_ascii=False)
        if text is None:
            return
        with atomic_file(self._beside(image)) as unfinished:
            unfinished.write_bytes(text.encode("utf-8", "backslashreplace"))

    def records(self) -> Iterator[Record]:
        return self._lines.records()

    def keep(self, wanted: Keep) -> None:
        """Drop the other records, and their texts before them."""
        for record in self._lines.records():
            image = self._image(record)
            if image is not None and not wanted(record) and "error" not in record:
                self._beside(image).unlink(missing_ok=True)
        self._lines.keep(wanted)

    def write(self, item: Item, record: Record) -> None:
        image = item.path
        if image is not None and "error" not in record:
            text = self._beside(image)
            if os.path.lexists(text):
                record = _refused(
                    record, f"{text.name} already exists, and this program did not write it; move it away."
                )
            elif not os.access(text.parent, os.W_OK):
                record = _refused(record, f"{text.name} can't be written into its folder; check its permissions.")
        self._lines.write(item, record)
        if image is not None and "error" not in record:
            self._write(image, record)

    def finish(self) -> None:
        self._lines.finish()

    def close(self) -> None:
        self._lines.close()


def _refused(record: Record, why: str) -> Record:
    kept: Record = {name: record[name] for name in ("key", "as", "model", "prompt") if name in record}
    return {**kept, "error": why}
