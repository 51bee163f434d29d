"""An image as the model sees it, and how it was made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image


@dataclass
class ImageSettings:
    """How images become ``pixel_values``.

    Attributes:
        size: side of the square, in pixels.
        patch_size: pixels per image token along one side (64).
        aspect_ratio: "pad" (Apple: bars to a square) or "crop" (transformers: the centre).
        mean, std: subtracted from and divided into the rescaled values; FastVLM leaves them alone with 0 and 1.
        resize: what an image is resized to before the centre of ``size`` is cut from it, in units of ``size``: its
            shortest edge, its (height, width), or None where it keeps its pixels.
        resample: the filter for that, as Pillow numbers them; 3 is bicubic.
        rescale_factor: what a byte is multiplied with.
        background: of the bars, in bytes; Apple takes the mean.
    """

    size: int = 1024
    patch_size: int = 64
    aspect_ratio: str = "pad"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    resize: float | tuple[float, float] | None = 1.0
    resample: int = PIL.Image.Resampling.BICUBIC
    rescale_factor: float = 1 / 255
    background: tuple[int, ...] = (0, 0, 0)

    @property
    def values(self) -> tuple[object, ...]:
        """What decides the values of a square's pixels."""
        return (self.mean, self.std, *([] if self.rescale_factor == 1 / 255 else [self.rescale_factor]))


@dataclass(frozen=True)
class Image:
    """An image as the model sees it; ``FastVlmProcessor.prepare`` makes it, from any source.

    It is an image source itself, and where its settings are the ones asked for, it is taken as it is: whoever keeps it
    has no image squared or hashed twice. Images are equal where their fingerprints are.

    Attributes:
        pixels: (size, size, 3), uint8, RGB, read-only.
        fingerprint: what it is recognised by, made of its pixels and ``settings.values``.
        settings: how it was made, ``size`` included.
    """

    pixels: np.ndarray = field(repr=False, compare=False)
    fingerprint: str
    settings: ImageSettings = field(repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the pixels."""
        return self.pixels.shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """A copy of the pixels, so that whatever reads an array reads an image too."""
        return self.pixels.astype(np.uint8 if dtype is None else dtype)
