"""A checkpoint's image settings: each key of its file is honoured, known to be harmless, or refused by name."""

from __future__ import annotations

import functools
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import read_json
from .prepared import ImageSettings
from .preprocess import MAX_IMAGE_SIZE

if TYPE_CHECKING:
    from ..config import FastVlmConfig

# What CLIPImageProcessor, which FastVLM's checkpoints name, takes for a key that is left out or null.
DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}

# They decide nothing about the pixels of an RGB image, whatever their value.
HARMLESS = frozenset(
    {
        "_name_or_path",
        "_processor_class",
        "auto_map",
        "data_format",  # ours is the model's own
        "device",
        "disable_grouping",
        "do_pad",  # to the largest image of a batch, and all have one size
        "do_convert_rgb",  # every image is made RGB here; what is not would be refused there
        "feature_extractor_type",
        "input_data_format",
        "processor_class",
        "return_tensors",
        "transformers_version",
    }
)

# They change the pixels in ways that are not computed here; false and null are no harm.
REFUSED = frozenset(
    {
        "background_color",
        "crop_pct",
        "do_align_long_axis",
        "do_crop_margin",
        "do_flip_channel_order",
        "do_image_splitting",
        "do_pan_and_scan",
        "do_thumbnail",
        "image_grid_pinpoints",
        "max_pixels",
        "min_pixels",
        "pad_size",
        "size_divisor",
        "use_square_size",
    }
)

# transformers' and mlx-vlm's names for the steps that are computed here.
PROCESSORS = (
    "CLIPFeatureExtractor",
    "CLIPImageProcessor",
    "CLIPImageProcessorFast",
    "CLIPImageProcessorPil",
    "FastVLMImageProcessor",
)


def read_image_settings(folder: Path, whole: dict[str, Any], config: FastVlmConfig) -> ImageSettings:
    """The settings in a folder, or FastVLM's own where it has none, as Apple's checkpoints.

    Args:
        whole: ``processor_config.json``, where transformers 5 and mlx-vlm nest them; else they are in
            ``preprocessor_config.json``.

    Raises:
        ValueError: for settings that are impossible, or that are not computed here.
    """
    nested, file = whole.get("image_processor"), folder / "preprocessor_config.json"
    if nested is not None:
        if not isinstance(nested, dict):
            raise ValueError("processor_config.json: image_processor must be an object; download it again.")
        return _Settings("processor_config.json", nested, config).read()
    if file.is_file():
        return _Settings(file.name, read_json(file), config).read()
    vision = config.vision_config
    return ImageSettings(vision.image_size, vision.patch_size, config.image_aspect_ratio)


class _Settings:
    """One file's settings."""

    def __init__(self, place: str, described: dict[str, Any], config: FastVlmConfig) -> None:
        self._place, self._config = place, config
        self._values = DEFAULTS | {name: value for name, value in described.items() if value is not None}

    def read(self) -> ImageSettings:
        self._check_names()
        normalize = self._flag("do_normalize")
        mean = self._colours("image_mean")
        std = self._colours("image_std")
        if 0 in std:
            raise self._wrong("image_mean and image_std must be three numbers, the second not 0")
        size = self._size()
        return ImageSettings(
            size,
            self._config.vision_config.patch_size,
            self._config.image_aspect_ratio,
            mean if normalize else (0.0,) * 3,
            std if normalize else (1.0,) * 3,
            self._resize(size),
            self._resample(),
            self._rescale_factor(),
            self._background(mean),
        )

    def _wrong(self, what: str) -> ValueError:
        return ValueError(f"{self._place}: {what}.")

    def _check_names(self) -> None:
        processor = self._values.get("image_processor_type", PROCESSORS[0])
        if processor not in PROCESSORS:
            raise self._wrong(f"images for {str(processor)[:50]} are not supported, only for {PROCESSORS[1]}")
        for name, value in self._values.items():
            if name in REFUSED and value:
                raise self._wrong(f"{name} is not supported")
            if name not in REFUSED | HARMLESS | DEFAULTS.keys() | {"image_processor_type"}:
                _warn(self._place, name[:50])

    def _flag(self, name: str) -> bool:
        value = self._values[name]
        if not isinstance(value, bool):
            raise self._wrong(f"{name} must be true or false")
        return value

    def _colours(self, name: str) -> tuple[float, ...]:
        values = self._values[name]
        values = [values] * 3 if isinstance(values, (int, float)) else values
        numbers = isinstance(values, (list, tuple)) and all(isinstance(value, (int, float)) for value in values)
        if not numbers or len(values) != 3 or not all(map(math.isfinite, values)):
            raise self._wrong("image_mean and image_std must be three numbers, the second not 0")
        return tuple(map(float, values))

    def _size(self) -> int:
        """Side of the square that comes out."""
        crops = self._flag("do_center_crop")
        name = "crop_size" if crops else "size"
        if not crops and not (self._flag("do_resize") and isinstance(self._sides("size", square=False), tuple)):
            raise self._wrong("without do_center_crop, size must be a height and a width, or images differ in shape")
        sides = self._sides(name, square=True)
        height, width = sides if isinstance(sides, tuple) else (sides, sides)
        patch = self._config.vision_config.patch_size
        if height != width:
            raise self._wrong(f"{name} must be a square, got {height} x {width} pixels")
        if height % patch or not patch <= height <= MAX_IMAGE_SIZE:
            raise ValueError(
                f"{self._place} asks for images of {height!r} pixels; it must be a multiple of {patch} up to "
                f"{MAX_IMAGE_SIZE}."
            )
        return height

    def _sides(self, name: str, square: bool) -> int | tuple[int, int]:
        """A size in any of transformers' forms: the shortest edge, or (height, width)."""
        value = self._values[name]
        if isinstance(value, dict) and value.keys() == {"height", "width"}:
            sides: tuple[Any, ...] = (value["height"], value["width"])
        elif isinstance(value, dict) and value.keys() == {"shortest_edge"} and name == "size":
            sides = (value["shortest_edge"],)
        elif isinstance(value, (list, tuple)) and len(value) == 2:
            sides = tuple(value)
        elif isinstance(value, int):
            sides = (value, value) if square or self._flag("default_to_square") else (value,)
        else:
            raise ValueError(
                f"{self._place} asks for images of {str(value)[:50]!r} pixels by {name}; that is not supported."
            )
        for side in sides:
            if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= MAX_IMAGE_SIZE:
                raise ValueError(
                    f"{self._place} asks for images of {str(side)[:50]!r} pixels by {name}; it must be 1 to "
                    f"{MAX_IMAGE_SIZE}."
                )
        return sides[0] if len(sides) == 1 else (sides[0], sides[1])

    def _resize(self, size: int) -> float | tuple[float, float] | None:
        if not self._flag("do_resize"):
            return None
        sides = self._sides("size", square=False)
        return (sides[0] / size, sides[1] / size) if isinstance(sides, tuple) else sides / size

    def _resample(self) -> int:
        resample = self._values["resample"]
        if isinstance(resample, bool) or not isinstance(resample, int) or not 0 <= resample <= 5:
            raise self._wrong("resample must be one of Pillow's filters, 0 to 5")
        return resample

    def _rescale_factor(self) -> float:
        factor = self._values["rescale_factor"]
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < 1e6:
            raise self._wrong("rescale_factor must be a positive number")
        return float(factor) if self._flag("do_rescale") else 1.0

    def _background(self, mean: tuple[float, ...]) -> tuple[int, ...]:
        """Of the bars: the mean, as Apple's predict.py has it."""
        if self._config.image_aspect_ratio != "pad":
            return (0, 0, 0)
        if not all(0 <= value <= 1 for value in mean):
            raise self._wrong("image_mean must lie between 0 and 1, or there is no such colour for the bars")
        return tuple(int(value * 255) for value in mean)


@functools.cache
def _warn(place: str, name: str) -> None:
    """Once for each name."""
    warnings.warn(
        f"{place}: {name} is not known here and ignored; if it changes how images are prepared, answers may differ.",
        stacklevel=2,
    )
