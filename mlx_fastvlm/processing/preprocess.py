"""An RGB image -> the square that the model sees, bit for bit as the reference makes it; and what recognises it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..config import FastVlmConfig
from .images import MAX_SIDES_RATIO


@dataclass
class ImageSettings:
    """How pictures become ``pixel_values``.

    Attributes:
        size: side of the square, in pixels.
        patch_size: pixels per image token along one side (64).
        aspect_ratio: "pad" (Apple: black bars to a square) or "crop" (transformers: shortest edge, then the centre).
        mean, std: subtracted from and divided into the values in [0, 1]; FastVLM leaves them alone with 0 and 1.
    """

    size: int = 1024
    patch_size: int = 64
    aspect_ratio: str = "pad"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)


MAX_IMAGE_SIZE = 4096  # pixels of a side: 4096 image tokens, and 16 times the tower's work at 1024
MAX_SQUARED_PIXELS = 4 * 10**8  # of what lies between a picture and its square: a phone's panorama has 2.7e8


def square(image: Image.Image, size: int, aspect_ratio: str) -> Image.Image:
    """An RGB picture as a ``size`` x ``size`` square, bit for bit as the reference makes it (bicubic, uint8).

    "pad" is LLaVA's ``expand2square`` on black, then a resize; "crop" is CLIPImageProcessor's resize of the shortest
    edge, then its centre crop.

    Raises:
        ValueError: for a picture without pixels, or one so narrow that its square would not fit into memory.
    """
    width, height = image.size
    if not width or not height:
        raise ValueError(f"A picture of {width} x {height} pixels shows nothing; give another.")
    short, long = min(width, height), max(width, height)
    between = (size if width >= height else long) * long if aspect_ratio == "pad" else size * (size * long // short)
    if between > MAX_SQUARED_PIXELS or long > MAX_SIDES_RATIO * short:
        raise ValueError(f"A picture of {width} x {height} pixels is too narrow to be made a square; cut it first.")
    if aspect_ratio == "pad":
        canvas = (long, long)
        if width > height:
            # Pillow resizes along rows first, and here the rows are whole: do that before the black bars are added.
            image, canvas = image.resize((size, height), Image.Resampling.BICUBIC), (size, long)
        if width != height:
            padded = Image.new("RGB", canvas)
            padded.paste(image, ((canvas[0] - image.width) // 2, (long - height) // 2))
            image = padded
        return image.resize((size, size), Image.Resampling.BICUBIC)
    long = int(size * long / short)
    width, height = (size, long) if width <= height else (long, size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def read_image_settings(pictures: dict[str, Any], config: FastVlmConfig) -> ImageSettings:
    """What a ``preprocessor_config.json`` says; ``ValueError`` where that is impossible."""
    crop = pictures.get("crop_size")
    size = (crop.get("height") if isinstance(crop, dict) else crop) or config.vision_config.image_size
    patch = config.vision_config.patch_size
    if isinstance(size, bool) or not isinstance(size, int) or size % patch or not patch <= size <= MAX_IMAGE_SIZE:
        raise ValueError(
            f"preprocessor_config.json asks for pictures of {size!r} pixels; it must be a multiple of {patch} up to "
            f"{MAX_IMAGE_SIZE}."
        )
    normalize = pictures.get("do_normalize", True)
    mean, std = (
        tuple(float(value) for value in (normalize and pictures.get(key)) or [default] * 3)
        for key, default in (("image_mean", 0.0), ("image_std", 1.0))
    )
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, mean + std)) or 0 in std:
        raise ValueError("preprocessor_config.json: image_mean and image_std must be three numbers, the second not 0.")
    return ImageSettings(size, patch, config.image_aspect_ratio, mean, std)


def image_fingerprint(pixels: np.ndarray, *settings: object) -> str:
    """Of a picture's bytes (uint8), their shape, and the settings that decide what the model sees of it."""
    digest = hashlib.sha256(repr((pixels.shape, pixels.dtype.str, settings)).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()[:32]
