"""Greyscale of more than 8 bits, and files from others' collections, beside Pillow's own conversion."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from mlx_fastvlm import load_image
from tests.support.paths import found_images

LEVELS = np.random.default_rng(0).random((20, 30), np.float32)


def in_a_file(image, kind="TIFF"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("levels", [LEVELS, LEVELS * 0.01, np.zeros((4, 4), np.float32), np.ones((4, 4), np.float32)])
def test_floats_mean_the_same_in_a_file_and_in_an_array(levels):
    array = np.asarray(load_image(levels))
    image = Image.fromarray(levels)
    assert image.mode == "F"
    assert np.array_equal(np.asarray(load_image(image)), array)
    assert np.array_equal(np.asarray(load_image(in_a_file(image))), array)


@pytest.mark.parametrize(("white", "expected"), [(255, 255), (65535, 65535), (2, 255), (256, 65535)])
def test_floats_of_other_ranges_are_8_or_16_bits(white, expected):
    levels = LEVELS * white
    levels[0, 0] = white
    grey = np.asarray(load_image(Image.fromarray(levels)))[..., 0]
    assert np.array_equal(grey, np.round(levels.astype(np.float64) * 255 / expected).astype(np.uint8))


@pytest.mark.parametrize("levels", [np.array([[np.nan, 1]], np.float32), np.array([[np.inf, 1]], np.float32)])
def test_floats_that_are_no_numbers(levels):
    with pytest.raises(ValueError, match="not finite"):
        load_image(in_a_file(Image.fromarray(levels)))


def test_integers_of_one_are_no_floats():
    levels = np.array([[0, 1]], np.int32)
    assert np.asarray(load_image(Image.fromarray(levels)))[0, :, 0].tolist() == [0, 1]


# What Pillow's own conversion does to files that people made.


FILES = found_images()
OPAQUE = {
    "skimage_chelsea.png",
    "skimage_rocket.jpg",
    "skimage_page.png",
    "pillow_pil_sample_cmyk.jpg",
    "pillow_tiff_16bit_RGB.tiff",
    "pillow_hopper_orientation_6.jpg",
    "pillow_hopper_orientation_3.webp",
    "pillow_exif_imagemagick_orientation.png",
    "pillow_iss634.gif",
}


@pytest.mark.parametrize("name", sorted(OPAQUE & FILES.keys()))
def test_files_without_transparency_are_as_pillow_converts_them(name):
    with Image.open(FILES[name]) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    for source in (FILES[name], FILES[name].read_bytes(), io.BytesIO(FILES[name].read_bytes())):
        assert np.array_equal(np.asarray(load_image(source)), np.asarray(expected))


@pytest.mark.parametrize("name", ["transparent.png", "different_transparency.gif", "apng_dispose_bg.png"])
def test_transparent_files_lie_on_white(name):
    with Image.open(FILES[f"pillow_{name}"]) as image:
        rgba = np.asarray(image.convert("RGBA")).astype(np.float64)
    opacity = rgba[..., 3:] / 255
    expected = rgba[..., :3] * opacity + 255 * (1 - opacity)
    assert np.abs(np.asarray(load_image(FILES[f"pillow_{name}"])) - expected).max() <= 1


def test_8_bits_in_a_container_of_16():
    with Image.open(FILES["skimage_chessboard_GRAY_U16.tif"]) as image:
        assert image.mode == "I;16"
        levels = np.asarray(image)
    assert levels.max() == 255
    assert np.array_equal(np.asarray(load_image(FILES["skimage_chessboard_GRAY_U16.tif"]))[..., 0], levels)


def test_a_file_that_is_cut_off():
    with pytest.raises(ValueError, match=r"broken \(.*truncated"):
        load_image(FILES["pillow_truncated_jpeg.jpg"])


def test_every_file_is_read_here():
    """Ten in a clone, and four larger ones where they are."""
    transparent = {
        f"pillow_{name}" for name in ("transparent.png", "different_transparency.gif", "apng_dispose_bg.png")
    }
    others = {"skimage_chessboard_GRAY_U16.tif", "pillow_truncated_jpeg.jpg"}
    assert FILES.keys() <= OPAQUE | transparent | others
    assert len(FILES) in (10, 14)
