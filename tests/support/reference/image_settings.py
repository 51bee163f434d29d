"""Records what transformers' CLIPImageProcessor (the Pillow backend) makes of images under many settings.

    pip install transformers pillow numpy
    python -m tests.support.reference.image_settings

"crop" is that alone; "pad" adds bars of the mean before, as Apple's predict.py does (LLaVA's expand2square).

Writes image_settings.json: for each case and each image the SHA-256 of the values (float32, height x width x 3), and
some of them. Pillow's version is there too: versions 12 and 13 round some pixels to neighbouring levels.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image, __version__

FILE = Path(__file__).with_suffix(".json")
SIZES = ((150, 100), (90, 200), (40, 30), (128, 128))  # width, height
# FastVLM's own, at a small size; each case changes some of it, and None leaves a key out.
BASE = {
    "crop_size": {"height": 128, "width": 128},
    "size": {"shortest_edge": 128},
    "image_mean": [0.0, 0.0, 0.0],
    "image_std": [1.0, 1.0, 1.0],
}
CASES = {
    "FastVLM's": {},
    "shortest edge over the crop": {"size": {"shortest_edge": 144}},
    "shortest edge under the crop": {"size": {"shortest_edge": 101}},
    "shortest edge left out": {"size": None},
    "crop left out": {"crop_size": None, "size": {"shortest_edge": 256}},
    "an int for each": {"size": 140, "crop_size": 64},
    "an int for a square": {"size": 140, "default_to_square": True},
    "a list": {"size": [130, 190]},
    "height and width": {"size": {"height": 160, "width": 130}},
    "height and width without a crop": {"size": {"height": 128, "width": 128}, "do_center_crop": False},
    "no resize": {"do_resize": False},
    **{f"filter {i}": {"resample": i} for i in range(6)},
    "no rescale": {"do_rescale": False},
    "another factor": {"rescale_factor": 1 / 127.5},
    "another factor and a mean": {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [0.5, 2.0, 1.0]},
    "CLIP's mean": {"image_mean": None, "image_std": None},
    "a mean": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]},
    "a mean that does nothing": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2], "do_normalize": False},
    "padding to what is there": {"do_pad": True},
    "no conversion": {"do_convert_rgb": False},
}


def image(width: int, height: int) -> Image.Image:
    """The same noise and slopes everywhere."""
    y, x = np.mgrid[:height, :width]
    noise = (x * 7919 + y * 104729) % 256
    return Image.fromarray(np.stack([(x * 255 // width), (y * 255 // height), noise], -1).astype(np.uint8))


def padded(image: Image.Image, mean) -> Image.Image:
    """The image in the middle of a square of the mean's colour."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def settings(case: str) -> dict:
    return {key: value for key, value in (BASE | CASES[case]).items() if value is not None}


def described(values: np.ndarray) -> dict:
    values = np.ascontiguousarray(values, dtype=np.float32)
    flat = values.reshape(-1)
    return {
        "shape": list(values.shape),
        "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
        "some": [float(value) for value in flat[:: flat.size // 7]],
    }


def main():
    import transformers  # noqa: PLC0415  only in the reference environment
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: PLC0415  as above

    recorded = {}
    for case in CASES:
        processor = CLIPImageProcessorPil(**settings(case))
        for size in SIZES:
            for kind, given in (("crop", image(*size)), ("pad", padded(image(*size), processor.image_mean))):
                (values,) = processor(given)["pixel_values"]
                recorded[f"{kind} {case} {size[0]}x{size[1]}"] = described(np.moveaxis(np.asarray(values), 0, -1))
    versions = {"transformers": transformers.__version__, "pillow": __version__}
    FILE.write_text(json.dumps({**versions, "values": recorded}, indent=1) + "\n")
    print(f"{len(recorded)} recorded in {FILE.name}")


if __name__ == "__main__":
    main()
