"""Bytes of an image from open files, data: URIs and base64, however they are written."""

import base64
import gzip
import io
import sys
import tempfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from mlx_fastvlm import load_frames, load_image
from mlx_fastvlm.processing.images import FORMATS
from tests.support import images, small

IMAGE = Image.fromarray(small.odd_image(40, 30))


def encoded(kind="PNG", **options):
    return images.encoded(IMAGE, kind, **options)


DATA = encoded()


def same(source):
    return np.array_equal(np.asarray(load_image(source)), np.asarray(IMAGE))


# Open files


@pytest.fixture(params=["BytesIO", "file", "unbuffered file", "spooled file", "gzip", "zip"])
def opened(request, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(DATA)
    match request.param:
        case "BytesIO":
            file = io.BytesIO(DATA)
        case "file":
            file = path.open("rb")
        case "unbuffered file":
            file = path.open("rb", buffering=0)
        case "spooled file":
            file = tempfile.SpooledTemporaryFile()  # noqa: SIM115  closed by hand
            file.write(DATA)
        case "gzip":
            file = gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(DATA)))
        case "zip":
            archive = io.BytesIO()
            with zipfile.ZipFile(archive, "w") as written:
                written.writestr("image", DATA)
            file = zipfile.ZipFile(archive).open("image")  # noqa: SIM115  closed below
    with file:
        yield file


@pytest.mark.parametrize("place", [0, 7, len(DATA)])
def test_open_files_are_read_from_their_beginning_and_stay_where_they_were(opened, place):
    opened.seek(place)
    assert same(opened)
    assert not opened.closed
    assert opened.tell() == place
    assert same(opened)


def test_a_buffer_that_was_just_written():
    buffer = io.BytesIO()
    IMAGE.save(buffer, "PNG")
    assert same(buffer)


@pytest.mark.parametrize("kind", FORMATS)
def test_open_files_of_every_format_stay_open(kind):
    try:
        data = encoded(kind)
    except (KeyError, OSError, ValueError):
        pytest.skip(f"Pillow does not write {kind} here")
    file = io.BytesIO(data)
    assert np.array_equal(np.asarray(load_image(file)), np.asarray(load_image(data)))
    assert file.getvalue() == data  # which a closed one does not give


def test_frames_of_an_open_file():
    data = encoded("GIF", save_all=True, append_images=[Image.new("RGB", IMAGE.size, "red")])
    assert len(load_frames(io.BytesIO(data), 2)) == 2


class Pipe:
    """Only goes on, as an answer of a server does."""

    def __init__(self, data):
        self._file = io.BytesIO(data)

    def read(self):
        return self._file.read()


def test_files_that_can_not_be_rewound():
    assert same(Pipe(DATA))
    pipe = Pipe(DATA)
    pipe.tell = pipe.seek = lambda *_: (_ for _ in ()).throw(io.UnsupportedOperation)
    assert same(pipe)


def closed():
    file = io.BytesIO(DATA)
    file.close()
    return file


def unready():
    pipe = Pipe(b"")
    pipe.read = lambda: None
    return pipe


def failing():
    pipe = Pipe(b"")
    pipe.read = lambda: {}["a\nb"]
    return pipe


@pytest.mark.parametrize(
    ("make", "words"),
    {
        "text": (lambda: io.StringIO("words"), "gives str, not bytes; open it in binary mode"),
        "nothing": (lambda: Pipe(b""), "is empty"),
        "junk": (lambda: io.BytesIO(b"junk" * 9), "The open file is not an image"),
        "closed": (closed, "can't be read"),
        "failing": (failing, "can't be read"),
        "not ready": (unready, "gives NoneType, not bytes"),
        "a class": (lambda: io.BytesIO, "can't be read"),
    }.values(),
)
def test_open_files_that_can_not_be_read(make, words):
    with pytest.raises(ValueError, match=words) as raised:
        load_image(make())
    assert str(raised.value).isprintable()


def test_standard_input_that_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="Standard input is closed"):
        load_image("-")


# Texts


@pytest.mark.parametrize(
    "header",
    ["data:image/png;base64", "DATA:image/png;BASE64", "Data:;base64", "data:image/png;charset=utf-8; Base64"],
)
def test_data_uris_in_any_letters(header):
    assert same(f"{header},{base64.b64encode(DATA).decode()}")
    assert same(f"{header},{base64.encodebytes(DATA).decode()}")  # in lines
    assert same(f"{header},{base64.b64encode(DATA).decode().replace('+', '%2B').replace('=', '%3D')}")


def test_data_uris_that_are_not_base64():
    escaped = "".join(f"%{byte:02x}" for byte in DATA)
    assert same(f"data:image/png,{escaped}")
    assert same(f"data:image/png;base64x,{escaped}")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF"])
def test_base64_of_every_common_format(kind):
    if kind not in Image.SAVE:
        pytest.skip(f"Pillow does not write {kind} here")
    data = encoded(kind)
    expected = np.asarray(load_image(data))
    for text in (
        base64.b64encode(data).decode(),
        base64.encodebytes(data).decode(),
        f"\n {base64.b64encode(data).decode()}",
    ):
        assert np.array_equal(np.asarray(load_image(text)), expected)


@pytest.mark.parametrize("text", [" " * 10**6 + "!", "A" * 10**6 + "!", "A=" * 500_000, "A " * 500_000, "é" * 10**6])
def test_long_texts_are_told_from_base64_at_once(text):
    """Once this took as long as the square of their length: hours for these."""
    with pytest.raises(FileNotFoundError, match="no such image") as raised:
        load_image(text)
    assert len(str(raised.value)) < 300


def test_names_of_files_are_shown_in_one_line(tmp_path):
    (tmp_path / "a\n\x1b[31mb.png").write_bytes(b"junk" * 9)
    for name in ("a\n\x1b[31mb.png", "c\x9bd.png"):
        with pytest.raises((ValueError, OSError)) as raised:
            load_image(tmp_path / name)
        assert str(raised.value).isprintable()


def test_what_pillow_says_is_shown_in_one_line(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("one\ntwo\x1b[31m" + "x" * 10**6)

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ValueError, match="is broken") as raised:
        load_image(DATA)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 400
