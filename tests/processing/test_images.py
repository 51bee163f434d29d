"""Any source becomes an upright RGB image, or one clear error."""

import base64
import io
import sys

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from mlx_fastvlm import load_frames, load_image
from tests.support import small
from tests.support.images import encoded
from tests.support.paths import found_images


def test_every_kind_of_source_gives_the_same_image(image, server, tmp_path, monkeypatch):
    data = encoded(image)
    path = tmp_path / "image.png"
    path.write_bytes(data)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    array = np.asarray(image)
    sources = {
        "path": path,
        "string": str(path),
        "bytes": data,
        "bytearray": bytearray(data),
        "data URI": "data:image/png;base64," + base64.b64encode(data).decode(),
        "base64": base64.b64encode(data).decode(),
        "base64 in lines": base64.encodebytes(data).decode(),
        "URL": f"{server}/image",
        "standard input": "-",
        "PIL": image,
        "numpy": array,
        "floats": array / 255,
        "mlx": mx.array(array),
        "mlx floats": mx.array(array).astype(mx.float32) / 255,
    }
    for name, source in sources.items():
        opened = load_image(source)
        assert opened.mode == "RGB", name
        assert np.array_equal(np.asarray(opened), array), name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(image, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    # How the file's pixels lie when the tag says so.
    undo = {1: None, 2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
            7: "TRANSVERSE", 8: "ROTATE_270"}[orientation]  # fmt: skip
    stored = image if undo is None else image.transpose(Image.Transpose[undo])
    assert np.array_equal(np.asarray(load_image(encoded(stored, exif=exif))), np.asarray(image))


def test_transparency_is_laid_over_white():
    clear = Image.new("RGBA", (4, 4), (200, 10, 10, 0))
    half = Image.new("LA", (4, 4), (0, 128))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([1, 2, 3] + [0] * 765)
    assert np.asarray(load_image(encoded(clear))).min() == 255
    assert np.asarray(load_image(half))[0, 0].tolist() == [127, 127, 127]
    assert np.asarray(load_image(encoded(palette, transparency=0))).min() == 255
    assert np.asarray(load_image(encoded(palette)))[0, 0].tolist() == [1, 2, 3]


def test_sixteen_bits_are_scaled_not_clipped():
    grey = Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16))
    assert np.asarray(load_image(encoded(grey)))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_other_modes(image):
    for mode in ("L", "1", "CMYK", "YCbCr", "HSV"):
        opened = load_image(image.convert(mode))
        assert opened.mode == "RGB"
        assert opened.size == image.size
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(load_image(animation))[0, 0].tolist() == [255, 0, 0]


BAD = {
    "missing": ("no/such/image.png", FileNotFoundError, "no such image"),
    "folder": (".", ValueError, "not a file"),
    "empty": (b"", ValueError, "is empty"),
    "junk": (b"certainly no image", ValueError, "not an image"),
    "data URI without data": ("data:image/png;base64", ValueError, "comma"),
    "data URI, bad base64": ("data:image/png;base64,@@@", ValueError, "base64"),
    "number": (7, ValueError, "can't be read from int"),
    "array of a wrong shape": (np.zeros((3, 3, 7), np.uint8), ValueError, "must have shape"),
    "array without pixels": (np.zeros((0, 3, 3), np.uint8), ValueError, "must have shape"),
    "float array out of range": (np.full((2, 2, 3), 200.0), ValueError, "divide by 255"),
    "float array with NaN": (np.full((2, 2, 3), np.nan), ValueError, "finite"),
    "integer array out of range": (np.full((2, 2, 3), 300), ValueError, r"\[0, 255\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sources(case):
    source, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        load_image(source)


def test_cut_off_files_are_an_error(image):
    for kind in ("PNG", "JPEG", "WEBP"):
        data = encoded(image, kind)
        with pytest.raises(ValueError, match=r"broken|not an image"):
            load_image(data[: len(data) * 2 // 3])


def test_frames():
    """Evenly spaced, the first and the last among them."""
    colours = [Image.new("RGB", (4, 4), (level, 0, 0)) for level in range(0, 250, 25)]
    animation = encoded(colours[0], "PNG", save_all=True, append_images=colours[1:])
    for frames, expected in ((1, [0]), (2, [0, 225]), (4, [0, 75, 150, 225]), (99, [*range(0, 250, 25)])):
        images = load_frames(animation, frames)
        assert [np.asarray(image)[0, 0, 0] for image in images] == expected
        assert all(image.mode == "RGB" for image in images)
    opened = Image.open(io.BytesIO(animation))
    opened.seek(3)
    assert len(load_frames(opened, 2)) == 2
    assert opened.tell() == 3
    assert len(load_frames(colours[0], 5)) == len(load_frames(np.asarray(colours[0]), 5)) == 1


def test_frames_of_a_cut_off_animation():
    colours = [Image.fromarray(small.odd_image(40, 30 + i)).resize((40, 30)) for i in range(4)]
    animation = encoded(colours[0], "GIF", save_all=True, append_images=colours[1:])
    with pytest.raises(ValueError, match=r"broken|not an image"):
        load_frames(animation[: len(animation) // 2], 4)


def test_heic():
    """As a phone held upright stores it: lying on its side, and a tag that says so."""
    pytest.importorskip("pillow_heif", reason="needs pillow_heif, of the extra heic").register_heif_opener()
    upright = Image.new("RGB", (64, 128), "red")
    upright.paste("blue", (0, 64, 64, 128))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(upright.transpose(Image.Transpose.ROTATE_90), "HEIF", exif=exif.tobytes())
    decoded = np.asarray(load_image(data)).astype(int)
    assert decoded.shape == (128, 64, 3)
    assert np.abs(decoded - np.asarray(upright)).mean() < 4


def test_heic_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "open", _unknown)
    with pytest.raises(ValueError, match="pip install pillow-heif"):
        load_image(b"\0\0\0\x18ftypheic" + bytes(40))


def _unknown(*_, **__):
    raise UnidentifiedImageError


def test_a_long_text_that_is_no_image_is_a_path():
    for text in ("a/b" * 200, base64.b64encode(b"certainly no image" * 50).decode()):
        with pytest.raises(FileNotFoundError, match="no such image"):
            load_image(text)


def test_a_bomb_is_refused(image, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="too many pixels"):
        load_image(encoded(image))


def test_images_found_in_the_wild():
    for path in found_images().values():
        if "truncated" in path.name:
            with pytest.raises(ValueError, match="broken"):
                load_image(path)
            continue
        image = load_image(path)
        assert image.mode == "RGB", path.name
        assert np.asarray(image).std() > 1 or "apng" in path.name, path.name
        count = {".gif": 2, ".png": 1}.get(path.suffix, 1) if "apng" not in path.name else 2
        assert len(load_frames(path, 2)) == count, path.name
