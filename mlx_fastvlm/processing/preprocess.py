"""Any image source -> the image as the model sees it: a square of pixels, made and fingerprinted once."""

from __future__ import annotations

import hashlib

import numpy as np
import PIL.Image

from .images import MAX_SIDES_RATIO, ImageSource, load_image
from .prepared import Image, ImageSettings


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
