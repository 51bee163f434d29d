"""Image settings: each key of a checkpoint's file is honoured as transformers does, harmless, or refused by name."""

import dataclasses
import hashlib
import json
import warnings

import numpy as np
import PIL
import pytest

from mlx_fastvlm import FastVlmConfig, load
from mlx_fastvlm.processing import settings as module
from mlx_fastvlm.processing.prepared import ImageSettings
from mlx_fastvlm.processing.preprocess import image_fingerprint
from mlx_fastvlm.processing.saving import preprocessor_config
from mlx_fastvlm.processing.settings import DEFAULTS, HARMLESS, REFUSED, read_image_settings
from tests.support import checkpoints
from tests.support.reference import image_settings as reference

RECORDED = json.loads(reference.FILE.read_text())
CONFIGS = {
    "crop": FastVlmConfig.from_dict(checkpoints.config("transformers")),
    "pad": FastVlmConfig.from_dict(checkpoints.config("apple")),
}
COMPLETE = {**DEFAULTS, "size": {"shortest_edge": 128}, "crop_size": {"height": 128, "width": 128}}


def read(tmp_path, described, kind="crop", whole=None):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(described))
    return read_image_settings(tmp_path, whole or {}, CONFIGS[kind])


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("case", [case for case in reference.CASES if case != "crop left out"])
def test_every_setting_gives_transformers_values(tmp_path, processor, case, kind):
    settings = read(tmp_path, reference.settings(case), kind)
    processor = dataclasses.replace(processor, image_settings=settings)
    one_level = (settings.rescale_factor or 1) / min(abs(np.array(settings.std)))
    for size in reference.SIZES:
        values = np.array(processor.preprocess(reference.image(*size)))[0]
        expected = RECORDED["values"][f"{kind} {case} {size[0]}x{size[1]}"]
        assert list(values.shape) == expected["shape"]
        assert np.abs(values.reshape(-1)[:: values.size // 7] - expected["some"]).max() <= 1.001 * one_level
        if PIL.__version__ == RECORDED["pillow"]:
            assert hashlib.sha256(values.tobytes()).hexdigest() == expected["sha256"]


def test_what_is_written_is_what_was_read(tmp_path, processor):
    for case in reference.CASES:
        if case != "crop left out":
            settings = read(tmp_path, reference.settings(case))
            written = preprocessor_config(dataclasses.replace(processor, image_settings=settings))
            assert read(tmp_path, written) == settings, case


def test_a_processor_that_transformers_5_saved(tmp_path):
    """It has its image settings in processor_config.json, and no other file counts then."""
    nested = {**COMPLETE, "image_mean": [0.5, 0.5, 0.5], "image_processor_type": "CLIPImageProcessor"}
    whole = {"processor_class": "LlavaProcessor", "image_processor": nested}
    settings = read(tmp_path, {"crop_size": 256}, whole=whole)
    assert (settings.size, settings.mean) == (128, (0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"processor_config.json: image_mean and image_std must be three numbers"):
        read(tmp_path, {}, whole={"image_processor": {**COMPLETE, "image_mean": "grey"}})
    with pytest.raises(ValueError, match=r"image_processor must be an object"):
        read(tmp_path, {}, whole={"image_processor": ["CLIPImageProcessor"]})


def test_a_loaded_processor_reads_the_nested_settings(tmp_path, checkpoint):
    folder = checkpoints.write(tmp_path, "transformers")
    (folder / "preprocessor_config.json").unlink()
    nested = {**COMPLETE, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": nested}))
    _, processor = load(folder, lazy=True)
    assert processor.image_settings == ImageSettings(128, 64, "crop", (0.5,) * 3, (0.25,) * 3)


def test_without_a_file_the_settings_are_fastvlms(tmp_path):
    assert read_image_settings(tmp_path, {}, CONFIGS["pad"]) == ImageSettings(128, 64, "pad")


# A value of each key that changes the pixels, if it is honoured.
CHANGED = {
    "do_resize": False,
    "size": {"shortest_edge": 192},
    "default_to_square": True,
    "resample": 2,
    "do_center_crop": False,
    "crop_size": {"height": 64, "width": 64},
    "do_rescale": False,
    "rescale_factor": 0.5,
    "do_normalize": False,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def test_the_table_says_what_happens_to_each_key(tmp_path):
    """Honoured keys change the settings, harmless ones don't, refused ones are named."""
    assert CHANGED.keys() == DEFAULTS.keys()
    assert len(DEFAULTS.keys() | HARMLESS | REFUSED) == len(DEFAULTS) + len(HARMLESS) + len(REFUSED)
    square = {**COMPLETE, "size": 128}  # an int, whose meaning default_to_square decides
    for key, value in CHANGED.items():
        stretched = {**COMPLETE, "size": {"height": 128, "width": 128}}
        before = {"default_to_square": square, "size": COMPLETE}.get(key, stretched)
        after = read(tmp_path, {**before, key: value})
        # Without the crop, such images come out the same: they have the crop's size already.
        assert (after == read(tmp_path, before)) is (key == "do_center_crop"), key
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for key in HARMLESS:
            assert read(tmp_path, {**COMPLETE, key: True}) == read(tmp_path, COMPLETE)
        for key in REFUSED:
            assert read(tmp_path, {**COMPLETE, key: False}) == read(tmp_path, {**COMPLETE, key: None})
            with pytest.raises(ValueError, match=f"preprocessor_config.json: {key} is not supported"):
                read(tmp_path, {**COMPLETE, key: True})
        for key in DEFAULTS:  # null is as if it were left out
            if key not in ("size", "crop_size"):
                left_out = {name: value for name, value in COMPLETE.items() if name != key}
                assert read(tmp_path, {**COMPLETE, key: None}) == read(tmp_path, left_out)


def test_an_unknown_key_warns_once_by_name(tmp_path):
    module._warn.cache_clear()
    with pytest.warns(UserWarning, match=r"preprocessor_config.json: sharpen is not known here"):
        read(tmp_path, {**COMPLETE, "sharpen": 2})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(tmp_path, {**COMPLETE, "sharpen": 2}) == read(tmp_path, COMPLETE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_size": {"height": 128, "width": 256}}, "crop_size must be a square, got 128 x 256 pixels"),
        ({"crop_size": None}, "asks for images of 224 pixels; it must be a multiple of 64"),
        ({"crop_size": 100}, "asks for images of 100 pixels; it must be a multiple of 64"),
        ({"crop_size": {"shortest_edge": 128}}, "by crop_size; that is not supported"),
        ({"crop_size": True}, "asks for images of 'True' pixels by crop_size"),
        ({"crop_size": 2**20}, "asks for images of '1048576' pixels by crop_size"),
        ({"size": {"shortest_edge": 128, "longest_edge": 256}}, "by size; that is not supported"),
        ({"size": {"max_height": 128, "max_width": 256}}, "by size; that is not supported"),
        ({"size": {"height": 128, "width": 2**20}}, "by size; it must be 1 to 4096"),
        ({"size": {"height": 128, "width": 0}}, "by size; it must be 1 to 4096"),
        ({"size": "large"}, "asks for images of 'large' pixels by size"),
        ({"do_center_crop": False}, "without do_center_crop, size must be a height and a width"),
        ({"do_center_crop": False, "do_resize": False}, "without do_center_crop, size must be"),
        ({"do_center_crop": False, "size": {"height": 128, "width": 64}}, "size must be a square, got 128 x 64"),
        ({"do_resize": "no"}, "do_resize must be true or false"),
        ({"do_rescale": 1}, "do_rescale must be true or false"),
        ({"resample": 6}, "resample must be one of Pillow's filters"),
        ({"resample": "bicubic"}, "resample must be one of Pillow's filters"),
        ({"rescale_factor": 0}, "rescale_factor must be a positive number"),
        ({"rescale_factor": "1/255"}, "rescale_factor must be a positive number"),
        ({"image_std": [1, 0, 1]}, "must be three numbers, the second not 0"),
        ({"image_mean": [0.5, 0.5]}, "must be three numbers, the second not 0"),
        ({"image_mean": ["a", "b", "c"]}, "must be three numbers, the second not 0"),
        ({"image_processor_type": "SiglipImageProcessor"}, "images for SiglipImageProcessor are not supported"),
        ({"pad_size": {"height": 256, "width": 256}}, "pad_size is not supported"),
    ],
)
def test_impossible_settings(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"^preprocessor_config.json.*{message}.*\\.$"):
        read(tmp_path, {**COMPLETE, **changes})


def test_bars_need_a_colour(tmp_path):
    with pytest.raises(ValueError, match="image_mean must lie between 0 and 1"):
        read(tmp_path, {**COMPLETE, "image_mean": [2, 0, 0]}, "pad")
    assert read(tmp_path, {**COMPLETE, "image_mean": [2, 0, 0]}, "crop").mean == (2.0, 0.0, 0.0)


def test_another_image_size_keeps_the_margin(processor):
    """Half the size is resized to half of what the checkpoint says before the crop."""
    settings = dataclasses.replace(processor.image_settings, size=128, aspect_ratio="crop", resize=1.5)
    processor = dataclasses.replace(processor, image_settings=settings)
    image = reference.image(150, 100)
    margin = image.resize((144, 96), 3).crop((40, 16, 104, 80))
    assert np.array_equal(np.array(processor.preprocess(image, 64))[0], np.asarray(margin, np.float32) / 255)


def test_what_decides_values_is_in_the_fingerprint():
    pixels = np.zeros((64, 64, 3), np.uint8)
    kinds = [
        ImageSettings(),
        ImageSettings(mean=(0.5,) * 3),
        ImageSettings(std=(0.5,) * 3),
        ImageSettings(rescale_factor=1.0),
    ]
    assert len({image_fingerprint(pixels, *settings.values) for settings in kinds}) == len(kinds)


def test_images_nested_by_prompt(processor):
    image = reference.image(40, 30)
    flat = processor(["<image>a", "<image><image>"], [image] * 3, image_size=64)
    nested = processor(["<image>a", "<image><image>"], [[image], [image, image]], image_size=64)
    assert all(np.array_equal(np.array(flat[name]), np.array(nested[name])) for name in flat)
    with pytest.raises(ValueError, match="1 <image> mark for 2"):
        processor(["<image>a", "<image><image>"], [[image, image], [image]], image_size=64)
    with pytest.raises(ValueError, match="1 lists of images for 2 prompts"):
        processor(["<image>", ""], [[image]], image_size=64)


def test_conversations_are_refused_where_prompts_belong(processor):
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(ValueError, match="text must be prompts; make them of messages with apply_chat_template"):
        processor(messages)
    with pytest.raises(ValueError, match="several conversations; give one at a time"):
        processor.encode_chat([messages, messages])
