"""A folder of images -> a JSON line for each; a second run goes on where the first ended."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import PIL.Image

from ..errors import UsageError
from ..files import json_line
from ..processing.images import FORMATS
from .batch import check_batch_size, in_order
from .engine import Engine
from .options import GenerationOptions, Options, lists_options_but_video

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing since Python 3.11

    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.messages import Prompt
    from ..processing.processor import FastVlmProcessor
    from .answer import Answer


@lists_options_but_video
def caption_folder(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    folder: str | Path,
    output: str | Path,
    prompt: str,
    *,
    batch_size: int = 16,
    **options: Unpack[Options],
) -> tuple[int, int]:
    """Ask the same about every image of a folder.

    Each gets a line in ``output``: ``{"file": ..., "text": ..., "finish_reason": ...}``, or
    ``{"file": ..., "error": ...}`` if it can't be opened. Images that have a line already are left out; to ask again
    about one, delete its line.

    Args:
        folder: images are its files with an extension that Pillow knows; subfolders and hidden files are not read.
        options: as for :func:`mlx_fastvlm.batch_generate`.

    Returns:
        How many images were captioned, and how many could not be opened.

    Raises:
        ValueError, OSError: for a bad option, or a folder or file that can't be read or written.
    """
    return write_captions(model, processor, folder, output, prompt, GenerationOptions(**options), batch_size)


def write_captions(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    folder: str | Path,
    output: str | Path,
    prompt: str,
    options: GenerationOptions,
    batch_size: int,
) -> tuple[int, int]:
    """:func:`caption_folder` for whoever holds the options already."""
    check_batch_size(batch_size)
    if options.video is not None:
        raise UsageError("Captions are of images; ask about a film with generate.")
    found = find_images(Path(folder))
    with _opened_alone(Path(output)) as lines:
        done = _recorded(Path(output))
        files = [file for file in found if file.name not in done]
        return _write(lines, files, model, processor, prompt, options, batch_size)


def _write(
    lines: TextIO,
    files: list[Path],
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompt: str,
    options: GenerationOptions,
    batch_size: int,
) -> tuple[int, int]:
    engine = Engine(model, processor, max_rows=batch_size, prefill_step_size=options.prefill_step_size)
    asked = (_ask(engine, processor, file, prompt, options) for file in files)
    broken = 0
    _show_progress(0, len(files))
    for written, (file, whole) in enumerate(zip(files, in_order(engine, asked)), start=1):
        if isinstance(whole.error, NoImage):
            broken += 1
            result = {"error": str(whole.error)}
        elif whole.error is not None:
            raise whole.error
        else:
            result = {"text": whole.text, "finish_reason": str(whole.finish_reason)}
        lines.write(json_line({"file": file.name, **result}) + "\n")
        lines.flush()
        if written % batch_size == 0 or written == len(files):
            _show_progress(written, len(files))
    return len(files) - broken, broken


@contextlib.contextmanager
def _opened_alone(output: Path) -> Iterator[TextIO]:
    """The file to append to; ``OSError`` where another process does, which would ask about every image again.

    Windows has no such locks, nor have some network disks: there nothing is refused.
    """
    with output.open("a", encoding="utf-8", errors="backslashreplace") as lines:
        try:
            import fcntl  # noqa: PLC0415  not on Windows

            fcntl.flock(lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(
                f"Another process is writing captions to {output}; wait until it has ended, or give another --output."
            ) from None
        except (ImportError, OSError):
            pass
        yield lines


class NoImage(Exception):
    """A file that can't be opened as an image, and why."""


def _ask(
    engine: Engine, processor: FastVlmProcessor, file: Path, prompt: Prompt, options: GenerationOptions
) -> Answer | Exception:
    try:
        images = processor.prepare_frames(file, options.frames, options.image_size)
    except (ValueError, OSError) as error:
        return NoImage(str(error))
    return engine.enqueue(engine.request(prompt, [*images], options), options)


def find_images(folder: Path) -> list[Path]:
    """The image files directly in a folder, by name."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give one with images.")
    known = {end for end, kind in PIL.Image.registered_extensions().items() if kind in FORMATS} | {".heic", ".heif"}
    files = (file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return sorted(file for file in files if file.suffix.lower() in known)


_BEGINNING = b'{"file": "'  # of every line


def _recorded(output: Path) -> set[str]:
    """The files that have a line; a last line cut off by a crash is removed."""
    if not output.is_file():
        return set()
    data = output.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    rest = data[len(whole) :]
    try:
        if not (rest.startswith(_BEGINNING) or _BEGINNING.startswith(rest)):
            raise ValueError
        names = {json.loads(line)["file"] for line in whole.decode("utf-8").split("\n") if line.strip()}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{output} holds other things than captions; give another --output.") from None
    if len(whole) < len(data):
        os.truncate(output, len(whole))  # what writes nothing can't fail for want of room
    return names


def _show_progress(done: int, total: int):
    """A bar on a terminal; elsewhere nothing."""
    if sys.stderr.isatty() and total:
        bar = "#" * (30 * done // total)
        print(f"\r[{bar:<30}] {done}/{total} images", end="\n" if done == total else "", file=sys.stderr, flush=True)
