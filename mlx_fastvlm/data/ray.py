"""Captions in Ray Data: a class for ``map_batches``. An actor of it holds a model; Ray does all else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..files import json_line
from ..generation.dataset import Job, caption_items
from ..generation.options import GenerationOptions
from ..models.pretrained import load
from .items import Item
from .sinks import Destination

if TYPE_CHECKING:
    from .lines import Record

KEYS = ("key", "__key__", "path", "id")
IMAGES = ("image", "bytes", "jpg", "jpeg", "png", "webp")
_TEXT = ("key", "text", "finish_reason", "choice", "json", "probabilities", "error", "model", "prompt")
_NUMBERS = ("prompt_tokens", "generation_tokens")


class Captioner:
    """Batches of images -> batches of records, a row for each image; see docs/scale.md.

    ``dataset.map_batches(Captioner, fn_constructor_kwargs={"model": "demo"}, batch_size=64, concurrency=2)``

    Args:
        model: a folder, a hub id or "demo"; each node reads it by itself.
        prompt: asked about each image that has none of its own in a column ``prompt``.
        choices: choose among these answers instead of writing a text.
        image, key: the columns with an image's bytes, ``{"bytes": ...}`` or pixels, and with what it is known by; by
            default the first there is of ``IMAGES`` and ``KEYS``.
        batch_size: answers at a time.
        threads: images opened at a time, ahead.
        dtype, revision, adapter_path: see :func:`mlx_fastvlm.load`.
        options: as for :func:`mlx_fastvlm.batch_generate`.

    Raises:
        UsageError: for a bad option, or where a batch lacks a column.
    """

    def __init__(  # noqa: PLR0913  what map_batches can pass are keywords
        self,
        model: str,
        prompt: str = "Describe the image.",
        *,
        choices: list[str] | None = None,
        image: str | None = None,
        key: str | None = None,
        batch_size: int = 16,
        threads: int = 4,
        dtype: str | None = None,
        revision: str | None = None,
        adapter_path: str | None = None,
        **options: Any,
    ) -> None:
        self._options = GenerationOptions(**options)
        self._job = Job(["-"], Destination("-"), prompt, choices, batch_size, threads)
        self._image, self._key = image, key
        self._model, self._processor = load(model, dtype=dtype, revision=revision, adapter_path=adapter_path)

    def __call__(self, batch: dict[str, np.ndarray]) -> Any:
        """A batch in Ray's numpy format -> a pyarrow table of the records that docs/captions.md lists."""
        images = batch[_column(batch, self._image, IMAGES, "the images")]
        keys = batch[_column(batch, self._key, KEYS, "the keys")]
        prompts = batch.get("prompt", [None] * len(keys))
        items = [_item(*row) for row in zip(keys, images, prompts)]
        records = caption_items(self._model, self._processor, items, self._job, self._options)
        return _table(records)


def _table(records: list[Record]) -> Any:
    """With the same columns whatever became of the images: Ray puts tables together."""
    import pyarrow  # noqa: PLC0415  Ray brings it along

    for record in records:
        record |= {name: json_line(record[name]) for name in ("json", "probabilities") if name in record}
    columns = [(name, pyarrow.string()) for name in _TEXT] + [(name, pyarrow.int64()) for name in _NUMBERS]
    return pyarrow.Table.from_pylist(records, pyarrow.schema(columns))


def _column(batch: dict[str, np.ndarray], given: str | None, known: tuple[str, ...], what: str) -> str:
    names = (given,) if given else known
    found = next((name for name in names if name in batch), None)
    if found is None:
        raise UsageError(
            f"There is no column {' or '.join(names)} for {what} among {', '.join(batch)}; name it, as image= or key=."
        )
    return found


def _item(key: Any, image: Any, prompt: Any) -> Item:
    """Only what is in the batch itself is read: its paths and URLs may be a stranger's."""
    if isinstance(image, dict):
        image = image.get("bytes")
    if isinstance(image, (bytes, np.ndarray)):
        return Item(str(key), image, str(prompt) if prompt else None)
    return Item(
        str(key),
        error=f"The image column holds {type(image).__name__}; read the files too, with ray.data.read_binary_files.",
    )
