"""Any image source -> the image as the model sees it: a square of pixels, made and fingerprinted once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image

from .images import MAX_SIDES_RATIO, ImageSource, load_image


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


def make_image(source: ImageSource, settings: ImageSettings) -> Image:
    """Any source as the model sees it; what is so already stays the same object. Errors as for ``load_image``."""
    if isinstance(source, Image) and source.settings == settings:
        return source
    pixels = np.asarray(square(load_image(source), settings.size, settings))
    pixels.setflags(write=False)
    return Image(pixels, image_fingerprint(pixels, *settings.values), settings)


MAX_IMAGE_SIZE = 4096  # pixels of a side: 4096 image tokens, and 16 times the tower's work at 1024
MAX_SQUARED_PIXELS = 4 * 10**8  # of what lies between an image and its square: a phone's panorama has 2.7e8


def square(image: PIL.Image.Image, size: int, settings: ImageSettings) -> PIL.Image.Image:
    """An RGB image as a ``size`` x ``size`` square, bit for bit as the reference makes it (uint8).

    "pad" is LLaVA's ``expand2square``, and then as "crop", which is CLIPImageProcessor's resize and centre crop.

    Raises:
        ValueError: for an image without pixels, or one so narrow that its square would not fit into memory.
    """
    if not image.width or not image.height:
        raise ValueError(f"An image of {image.width} x {image.height} pixels shows nothing; give another.")
    pads, (width, height) = settings.aspect_ratio == "pad", image.size
    canvas = (max(width, height),) * 2 if pads else (width, height)
    target = _target(canvas, size, settings.resize)
    # To a square, Pillow resizes along rows first, and a wide image's are whole: that goes before the bars are added.
    early = pads and width > height and target[0] == target[1]
    between = (target[0] if early or width == height else canvas[0]) * canvas[1] if pads else target[0] * target[1]
    if between > MAX_SQUARED_PIXELS or max(width, height) > MAX_SIDES_RATIO * min(width, height):
        raise ValueError(f"An image of {width} x {height} pixels is too narrow to be made a square; cut it first.")
    if early:
        image, canvas = image.resize((target[0], height), settings.resample), (target[0], canvas[1])
    if image.size != canvas:
        padded = PIL.Image.new("RGB", canvas, settings.background)
        padded.paste(image, ((canvas[0] - image.width) // 2, (canvas[1] - image.height) // 2))
        image = padded
    image = image.resize(target, settings.resample)
    left, top = (target[0] - size) // 2, (target[1] - size) // 2
    return image.crop((left, top, left + size, top + size))


def _target(canvas: tuple[int, int], size: int, resize: float | tuple[float, float] | None) -> tuple[int, int]:
    """Width and height that an image is resized to."""
    width, height = canvas
    if resize is None:
        return canvas
    if isinstance(resize, tuple):
        return round(resize[1] * size), round(resize[0] * size)
    short = round(resize * size)
    long = int(short * max(canvas) / min(canvas))
    return (short, long) if width <= height else (long, short)


def image_fingerprint(pixels: np.ndarray, *settings: object) -> str:
    """Of an image's bytes (uint8), their shape, and the settings that decide what the model sees of it."""
    digest = hashlib.sha256(repr((pixels.shape, pixels.dtype.str, settings)).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()[:32]
