"""Arrays and greyscale of more than 8 bits -> PIL images of 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ..errors import one_line

HIGH_RANGE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # which Pillow would clip instead of scale


def from_array(source: Any) -> Image.Image:
    """An array of any library as a PIL image of mode L, RGB or RGBA.

    Args:
        source: (height, width), (height, width, 1), (height, width, 3) or (height, width, 4); integers in [0, 255] or
            floats in [0, 1].

    Raises:
        ValueError: for another shape, dtype or range.
    """
    array = _as_numpy(source)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)) or 0 in array.shape:
        raise ValueError(
            "An image array must have shape (height, width), (height, width, 3) or (height, width, 4), "
            f"got {array.shape}."
        )
    return Image.fromarray(_eight_bits(array))


def from_high_range(image: Image.Image) -> Image.Image:
    """A PIL image of one of the ``HIGH_RANGE_MODES`` as RGB.

    Files don't say what their white is, so the values do: floats up to 1 lie in [0, 1], as in an array; others up to
    255 are 8 bits in a wide container; the rest are 16 bits.
    """
    levels = np.asarray(image).astype(np.float64)
    if not np.isfinite(levels).all():
        raise ValueError("it holds values that are not finite")
    highest = levels.max(initial=0)
    white = 1 if image.mode == "F" and highest <= 1 else 255 if highest <= 255 else 65535
    return Image.fromarray(_rounded(levels * (255 / white))).convert("RGB")


def _as_numpy(source: Any) -> np.ndarray:
    try:
        return np.array(source)
    except Exception:  # an array of another library; NumPy has no bfloat16
        try:
            return np.array(source.tolist())
        except Exception as error:
            raise ValueError(
                f"An image array could not be read ({one_line(str(error))}); give it as a NumPy array."
            ) from None


def _eight_bits(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError("An image array must hold finite numbers only.")
        if array.min() < 0 or array.max() > 1:
            raise ValueError("A float image array must lie in [0, 1]; divide by 255, or give uint8.")
        return _rounded(array.astype(np.float64) * 255)
    if array.dtype.kind not in "ui":
        raise ValueError(f"An image array must hold integers in [0, 255] or floats in [0, 1], not {array.dtype}.")
    if array.min() < 0 or array.max() > 255:
        raise ValueError("An integer image array must lie in [0, 255].")
    return array.astype(np.uint8)


def _rounded(levels: np.ndarray) -> np.ndarray:
    return np.clip(np.round(levels), 0, 255).astype(np.uint8)
