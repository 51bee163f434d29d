"""Any image source -> an upright RGB picture."""

from __future__ import annotations

import base64
import binascii
import sys
import urllib.error
import urllib.parse
import urllib.request
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

URL_TIMEOUT = 20  # seconds without an answer
URL_LIMIT = 64 * 2**20  # bytes

ImageSource = Any  # path, URL, data: URI, bytes, "-", PIL image, numpy or mlx array


def load_image(source: ImageSource) -> Image.Image:
    """Open a picture, upright and in RGB.

    Args:
        source: a path, an http(s) URL, a ``data:`` URI, the bytes of a file, ``"-"`` for standard input, a PIL image,
            or a numpy or mlx array: (height, width, 3), (height, width, 4), (height, width) or (height, width, 1),
            integers in [0, 255] or floats in [0, 1].

    Returns:
        A PIL image of mode RGB: EXIF orientation applied, transparency over white, of an animation the first frame.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it could not be read or fetched.
        ValueError: it is no picture, or broken.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, "The picture")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), "The picture")
    if isinstance(source, (str, Path)):
        name = str(source)
        if name == "-":
            return _decode(sys.stdin.buffer.read(), "Standard input")
        if name.startswith("data:"):
            return _decode(_from_data_uri(name), "The data: URI")
        if name.startswith(("http://", "https://")):
            return _decode(_fetch(name), name)
        return _open_file(Path(name).expanduser())
    if hasattr(source, "shape"):
        return _from_array(np.array(source))
    raise ValueError(
        f"A picture can't be read from {type(source).__name__}; give a path, URL, data: URI, bytes, PIL image or array."
    )


def _open_file(path: Path) -> Image.Image:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such picture; check the path.")
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give the path of a picture.")
    with path.open("rb") as file:
        return _decode(file, str(path))


def _decode(data, name: str) -> Image.Image:
    """``data``: bytes, or an open file, which Pillow reads only as far as it must."""
    if isinstance(data, bytes):
        if not data:
            raise ValueError(f"{name} is empty; give a picture.")
        data = BytesIO(data)
    try:
        with Image.open(data) as image:
            return _to_rgb(image, name)
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not a picture that Pillow can read; convert it to PNG or JPEG.") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{name} has too many pixels to be opened safely; scale it down first.") from None
    except (OSError, SyntaxError, EOFError) as error:  # what Pillow's readers raise for a damaged header
        raise _broken(name, error) from None


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I", "F"):
            return _from_high_range(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            paper = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(paper, image).convert("RGB")
        return image.convert("RGB")  # a no-op but for a copy where it is RGB already
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise _broken(name, error) from None


def _broken(name: str, error: Exception) -> ValueError:
    return ValueError(f"{name} is broken ({error}); give an intact picture.")


def _from_high_range(image: Image.Image) -> Image.Image:
    """16-bit (and 32-bit integer or float) greyscale, which Pillow would clip instead of scale."""
    levels = np.asarray(image).astype(np.float64)
    if not np.isfinite(levels).all():
        raise ValueError("it holds values that are not finite")
    highest = 255 if levels.max(initial=0) <= 255 else 65535  # eight-bit pictures come in wide containers too
    grey = np.clip(np.round(levels * (255 / highest)), 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


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
    elif array.dtype.kind not in "ui" or array.min() < 0 or array.max() > 255:
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


def _fetch(url: str) -> bytes:
    """A URL's body, http and https only, also after redirects."""
    request = urllib.request.Request(url, headers={"User-Agent": "mlx-fastvlm"})
    try:
        # Only these handlers: the default opener would also follow a redirect to ftp.
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler(),
        ):
            opener.add_handler(handler)
        with opener.open(request, timeout=URL_TIMEOUT) as response:
            body = response.read(URL_LIMIT + 1)
    except urllib.error.HTTPError as error:
        raise OSError(f"{url} answered {error.code} {error.reason}; check the address.") from None
    except (OSError, ValueError) as error:  # URLError and timeouts are OSErrors
        reason = getattr(error, "reason", error)
        raise OSError(f"{url} could not be fetched ({reason}); check the address and the connection.") from None
    if len(body) > URL_LIMIT:
        raise OSError(f"{url} is larger than {URL_LIMIT >> 20} MB; download it and give its path.")
    return body
