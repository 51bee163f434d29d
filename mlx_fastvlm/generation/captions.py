"""A folder of images -> a JSON line for each, in batches; a second run goes on where the first ended."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image

from ..models.fastvlm import FastVlmForConditionalGeneration
from ..processing.images import FORMATS, iter_frames
from ..processing.messages import Prompt
from ..processing.preprocess import Image
from ..processing.processor import FastVlmProcessor
from .batch import answer_batch, check_batch_size
from .options import GenerationOptions, Options, lists_options

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing since Python 3.11


@lists_options
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

    Each gets a line in ``output``: ``{"file": ..., "text": ...}``, or ``{"file": ..., "error": ...}`` if it can't be
    opened. Images that have a line already are left out; to ask again about one, delete its line.

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
    done = _recorded(Path(output))
    files = [file for file in find_images(Path(folder)) if file.name not in done]
    broken = 0
    with Path(output).open("a", encoding="utf-8", errors="backslashreplace") as lines:
        for start in range(0, len(files), batch_size):
            _show_progress(start, len(files))
            images: dict[str, list[Image]] = {}
            results: dict[str, dict[str, str]] = {}
            for file in files[start : start + batch_size]:
                try:  # what is kept of each is what the model will see: small, however large the file's image is
                    frames = iter_frames(file, options.frames)
                    images[file.name] = [processor.prepare(frame, options.image_size)[0] for frame in frames]
                except (ValueError, OSError) as error:
                    results[file.name] = {"error": str(error)}
            prompts: list[Prompt] = [prompt] * len(images)
            texts = answer_batch(model, processor, prompts, list(images.values()), options, batch_size)
            results |= {name: {"text": text} for name, text in zip(images, texts)}
            broken += len(results) - len(texts)
            for file in files[start : start + batch_size]:
                lines.write(json.dumps({"file": file.name, **results[file.name]}, ensure_ascii=False) + "\n")
            lines.flush()
        _show_progress(len(files), len(files))
    return len(files) - broken, broken


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
