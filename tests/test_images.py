"""Any source becomes an upright RGB picture, or one clear error."""

import base64
import http.server
import io
import sys
import threading

import mlx.core as mx
import numpy as np
import pytest
from conftest import SHARED
from PIL import Image

import small
from mlx_fastvlm import load_image


@pytest.fixture
def picture():
    return Image.fromarray(small.odd_picture(40, 30))


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def server(picture):
    """A loopback server: /picture is one, /missing is not, /moved redirects to a file."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "file:///etc/passwd")
                self.end_headers()
            elif self.path == "/picture":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(encoded(picture))
            else:
                self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_kind_of_source_gives_the_same_picture(picture, server, tmp_path, monkeypatch):
    data = encoded(picture)
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    array = np.asarray(picture)
    sources = {
        "path": path,
        "string": str(path),
        "bytes": data,
        "bytearray": bytearray(data),
        "data URI": "data:image/png;base64," + base64.b64encode(data).decode(),
        "URL": f"{server}/picture",
        "standard input": "-",
        "PIL": picture,
        "numpy": array,
        "floats": array / 255,
        "mlx": mx.array(array),
        "mlx floats": mx.array(array).astype(mx.float32) / 255,
    }
    for name, source in sources.items():
        image = load_image(source)
        assert image.mode == "RGB", name
        assert np.array_equal(np.asarray(image), array), name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    # How the file's pixels lie when the tag says so.
    undo = {1: None, 2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
            7: "TRANSVERSE", 8: "ROTATE_270"}[orientation]  # fmt: skip
    stored = picture if undo is None else picture.transpose(Image.Transpose[undo])
    assert np.array_equal(np.asarray(load_image(encoded(stored, exif=exif))), np.asarray(picture))


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


def test_other_modes(picture):
    for mode in ("L", "1", "CMYK", "YCbCr", "HSV"):
        image = load_image(picture.convert(mode))
        assert image.mode == "RGB"
        assert image.size == picture.size
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(load_image(animation))[0, 0].tolist() == [255, 0, 0]


BAD = {
    "missing": ("no/such/picture.png", FileNotFoundError, "no such picture"),
    "folder": (".", ValueError, "not a file"),
    "empty": (b"", ValueError, "is empty"),
    "junk": (b"certainly no picture", ValueError, "not a picture"),
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


def test_cut_off_files_are_an_error(picture):
    for kind in ("PNG", "JPEG", "WEBP"):
        data = encoded(picture, kind)
        with pytest.raises(ValueError, match=r"broken|not a picture"):
            load_image(data[: len(data) * 2 // 3])


def test_urls_that_fail(server):
    with pytest.raises(OSError, match="404"):
        load_image(f"{server}/missing")
    with pytest.raises(OSError, match="302"):
        load_image(f"{server}/moved")
    with pytest.raises(OSError, match="could not be fetched"):
        load_image("http://127.0.0.1:9/nothing-listens-here")


def test_a_bomb_is_refused(picture, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="too many pixels"):
        load_image(encoded(picture))


def test_pictures_found_in_the_wild():
    folder = SHARED / "images"
    if not folder.is_dir():
        pytest.skip("needs ../shared/images")
    for path in sorted(folder.iterdir()):
        if path.suffix == ".md":
            continue
        if "truncated" in path.name:
            with pytest.raises(ValueError, match="broken"):
                load_image(path)
            continue
        image = load_image(path)
        assert image.mode == "RGB", path.name
        assert np.asarray(image).std() > 1, path.name
