"""Any image source -> an upright RGB picture."""

from __future__ import annotations

import base64
import binascii
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .fetch import fetch

# Pillow's other readers stay shut: some run programs (EPS starts Ghostscript), and few people ever fed them bad files.
FORMATS = ("PNG", "JPEG", "MPO", "GIF", "WEBP", "BMP", "DIB", "TIFF", "ICO", "PPM", "JPEG2000", "TGA", "AVIF", "HEIF")
# A narrower picture can't be made a square (see processing.py), so it is not decoded either: a few hundred bytes can
# claim 8,388,608 x 20 pixels, and Pillow takes a minute to fill them.
MAX_SIDES_RATIO = 200


ImageSource = Any  # path, URL, data: URI, base64, bytes, "-", PIL image, numpy or mlx array

# How pictures begin, for telling base64 from a path: JPEG, PNG, GIF, WebP, BMP, TIFF.
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def load_image(source: ImageSource) -> Image.Image:
    """Open a picture, upright and in RGB.

    Args:
        source: a path, an http(s) URL, a ``data:`` URI, base64, the bytes of a file, ``"-"`` for standard input, a PIL
            image, or a numpy or mlx array: (height, width, 3), (height, width, 4), (height, width) or
            (height, width, 1), integers in [0, 255] or floats in [0, 1]. HEIC needs the package pillow-heif.

    Returns:
        A PIL image of mode RGB: EXIF orientation applied, transparency over white, of an animation the first frame.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it could not be read or fetched.
        ValueError: it is no picture, or broken.
    """
    return load_frames(source, 1)[0]


def load_frames(source: ImageSource, frames: int) -> list[Image.Image]:
    """Open an animation as that many pictures, evenly spaced from its first frame to its last.

    One that has fewer frames gives all; a still picture gives itself. Sources, results and errors as for
    :func:`load_image`.
    """
    if isinstance(source, Image.Image):
        return _frames(source, "The picture", frames)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), "The picture", frames)
    if isinstance(source, (str, Path)):
        name = str(source)
        if name == "-":
            return _decode(sys.stdin.buffer.read(), "Standard input", frames)
        if name.startswith("data:"):
            return _decode(_from_data_uri(name), "The data: URI", frames)
        if name.startswith(("http://", "https://")):
            return _decode(fetch(name), name, frames)
        data = _from_base64(name)
        if data is not None:
            return _decode(data, "The base64 text", frames)
        return _open_file(Path(name), frames)
    if hasattr(source, "shape"):
        return [_from_array(_as_numpy(source))]
    raise ValueError(
        f"A picture can't be read from {type(source).__name__}; give a path, URL, data: URI, bytes, PIL image or array."
    )


def _open_file(path: Path, frames: int) -> list[Image.Image]:
    name = str(path) if str(path).isprintable() else repr(str(path))
    name = name if len(name) <= 200 else f"{name[:60]}..."
    try:
        path = path.expanduser()
        exists = path.exists()
    except (OSError, RuntimeError):  # a name too long for the system; a user that is none
        exists = False
    if not exists:
        raise FileNotFoundError(f"{name}: no such picture; check the path.")
    if not path.is_file():
        raise ValueError(f"{name} is not a file; give the path of a picture.")
    try:
        file = path.open("rb")
    except OSError as error:
        raise OSError(f"{name} can't be read ({error.strerror}); check its permissions.") from None
    with file:
        if not path.stat().st_size:
            raise ValueError(f"{name} is empty; give a picture.")
        return _decode(file, name, frames)


def _decode(data, name: str, frames: int) -> list[Image.Image]:
    """``data``: bytes, or an open file, which Pillow reads only as far as it must."""
    if isinstance(data, bytes):
        if not data:
            raise ValueError(f"{name} is empty; give a picture.")
        data = BytesIO(data)
    heif = _is_heif(data)
    if heif:
        _register_heif()
    try:
        with _open(data) as image:
            return _frames(image, name, frames)
    except UnidentifiedImageError:
        if heif:
            raise ValueError(f"{name} is HEIC, which needs one more package: pip install pillow-heif.") from None
        raise ValueError(f"{name} is not a picture that Pillow can read; convert it to PNG or JPEG.") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{name} has too many pixels to be opened safely; scale it down first.") from None
    except _BadPicture:
        raise
    except MemoryError:
        raise ValueError(f"{name} is too large for the memory; scale it down first.") from None
    except Exception as error:  # Pillow's readers raise anything for a damaged file
        raise _broken(name, error) from None


def _open(file) -> Image.Image:
    Image.preinit()  # the commonest formats; importing the others takes as long again
    try:
        return Image.open(file, formats=[kind for kind in FORMATS if kind in Image.OPEN])
    except UnidentifiedImageError:
        Image.init()
        file.seek(0)
        return Image.open(file, formats=[kind for kind in FORMATS if kind in Image.OPEN])


def _frames(image: Image.Image, name: str, frames: int) -> list[Image.Image]:
    _check_size(image, name)
    count = getattr(image, "n_frames", 1) if frames > 1 else 1
    if count == 1:
        return [_to_rgb(image, name)]
    pictures, before = [], image.tell()
    for place in np.linspace(0, count - 1, min(frames, count)).round():
        image.seek(int(place))
        pictures.append(_to_rgb(image.copy(), name))
    image.seek(before)
    return pictures


def _check_size(image: Image.Image, name: str):
    """Before anything is decoded."""
    width, height = image.size
    if not width or not height:
        raise _BadPicture(f"{name} has no pixels; give another picture.")
    if max(width, height) > MAX_SIDES_RATIO * min(width, height):
        raise _BadPicture(f"{name}, {width} x {height} pixels, is too narrow to be made a square; cut it first.")


def _is_heif(file) -> bool:
    """Whether an open file begins as iPhones' pictures do; reads it again from the start afterwards."""
    head = file.read(12)
    file.seek(0)
    return head[4:8] == b"ftyp" and head[8:] in _HEIF_BRANDS


def _register_heif():
    """Teach Pillow HEIC, where the optional package for it is there."""
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        image = _upright(image)
        if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I", "F"):
            return _from_high_range(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            paper = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(paper, image).convert("RGB")
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")  # which copies what is RGB already
    except MemoryError:
        raise _BadPicture(f"{name} is too large for the memory; scale it down first.") from None
    except Exception as error:  # Pillow decodes here, and raises anything for damaged data
        raise _broken(name, error) from None


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data asks; as it lies, where they are damaged, as other programs do."""
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image  # exif_transpose would copy it
        image.load()
        return ImageOps.exif_transpose(image)
    except Exception:  # anything, for data like these; what is wrong with the pixels shows when they are read
        return image


class _BadPicture(ValueError):
    """Says what is wrong with a picture, and must not be wrapped into another sentence."""


def _broken(name: str, error: Exception) -> ValueError:
    return _BadPicture(f"{name} is broken ({error}); give an intact picture.")


def _from_high_range(image: Image.Image) -> Image.Image:
    """16-bit (and 32-bit integer or float) greyscale, which Pillow would clip instead of scale."""
    levels = np.asarray(image).astype(np.float64)
    if not np.isfinite(levels).all():
        raise ValueError("it holds values that are not finite")
    highest = 255 if levels.max(initial=0) <= 255 else 65535  # eight-bit pictures come in wide containers too
    grey = np.clip(np.round(levels * (255 / highest)), 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _as_numpy(source: Any) -> np.ndarray:
    try:
        return np.array(source)
    except Exception:  # an array of another library; NumPy has no bfloat16
        try:
            return np.array(source.tolist())
        except Exception as error:
            raise ValueError(f"An array picture could not be read ({error}); give it as a NumPy array.") from None


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)) or 0 in array.shape:
        raise ValueError(
            f"An array picture must have shape (height, width), (height, width, 3) or (height, width, 4), "
            f"got {array.shape}."
        )
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError("An array picture must hold finite numbers only.")
        if array.min() < 0 or array.max() > 1:
            raise ValueError("A float array picture must lie in [0, 1]; divide by 255, or give uint8.")
        array = np.round(array.astype(np.float64) * 255)
    elif array.dtype.kind not in "ui":
        raise ValueError(f"An array picture must hold integers in [0, 255] or floats in [0, 1], not {array.dtype}.")
    elif array.min() < 0 or array.max() > 255:
        raise ValueError("An integer array picture must lie in [0, 255].")
    return _to_rgb(Image.fromarray(array.astype(np.uint8)), "The picture")


def _from_data_uri(uri: str) -> bytes:
    header, comma, body = uri.partition(",")
    if not comma:
        raise ValueError("The data: URI has no comma before its data; it should look like data:image/png;base64,....")
    if not header.endswith(";base64"):
        return urllib.parse.unquote_to_bytes(body)
    try:
        return base64.b64decode(urllib.parse.unquote_to_bytes(body), validate=True)
    except binascii.Error:
        raise ValueError("The data: URI is not valid base64; encode the picture again.") from None


def _from_base64(text: str) -> bytes | None:
    """The bytes of a picture in base64, without the ``data:`` in front; None for anything else, such as a path."""
    if len(text) < 64 or not re.fullmatch(r"[A-Za-z0-9+/\s]+={0,2}\s*", text):
        return None
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error:
        return None
    return data if data.startswith(_BEGINNINGS) or _is_heif(BytesIO(data)) else None
