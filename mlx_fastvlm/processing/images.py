"""Any image source -> upright RGB images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from ..errors import one_line, require
from .arrays import HIGH_RANGE_MODES, from_array, from_high_range
from .sources import open_source

# Pillow's other readers stay shut: some run programs (EPS starts Ghostscript), and few people ever fed them bad files.
FORMATS = ("PNG", "JPEG", "MPO", "GIF", "WEBP", "BMP", "DIB", "TIFF", "ICO", "PPM", "JPEG2000", "TGA", "AVIF", "HEIF")

# A narrower image can't be made a square (see preprocess.py), so it is not decoded either: a few hundred bytes can
# claim 8,388,608 x 20 pixels, and Pillow takes a minute to fill them.
MAX_SIDES_RATIO = 200
MAX_PIXELS = 178_956_970  # of one frame, before it is decoded: Pillow's limit, which looks at a file's first frame only
MAX_FRAMES = 10_000  # of an animation, before any is decoded: 15 bytes can be a frame
MAX_ANIMATION_PIXELS = 2 * 10**9  # of all frames decoded on the way to the last one: 960 at 1080p, some seconds

_RANDOM_ACCESS = ("TIFF", "MPO")  # formats whose later frames can be decoded without those before them
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

ImageSource = Any  # path, URL, data: URI, base64, bytes, open file, "-", PIL image, numpy or mlx array


def load_image(source: ImageSource) -> Image.Image:
    """Open an image, upright and in RGB.

    Args:
        source: a path, an http(s) URL, a ``data:`` URI, base64, the bytes of a file, a file opened in binary mode,
            ``"-"`` for standard input, a PIL image, or a numpy or mlx array: (height, width, 3), (height, width, 4),
            (height, width) or (height, width, 1), integers in [0, 255] or floats in [0, 1]. HEIC needs the package
            pillow-heif. An open file is read from its beginning where it can be rewound, as Pillow does; it stays open,
            and at the place where it was.

    Returns:
        A PIL image of mode RGB: EXIF orientation applied, transparency over white, of an animation the first frame.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it could not be read or fetched.
        ValueError: it is no image, or broken, or has more than ``MAX_PIXELS`` pixels.
    """
    return load_frames(source, 1)[0]


def load_frames(source: ImageSource, frames: int) -> list[Image.Image]:
    """Open an animation as that many images, evenly spaced from its first frame to its last.

    One that has fewer frames gives all; a still image gives itself. Sources, results and errors as for
    :func:`load_image`.
    """
    return list(iter_frames(source, frames))


def iter_frames(source: ImageSource, frames: int = 1, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """The images of :func:`load_frames` one at a time, so that none has to be kept at its full size.

    Errors come when the image that they are about is asked for.

    Args:
        max_pixels: of a frame, instead of ``MAX_PIXELS``.

    Raises:
        ValueError: also for an animation of more than ``MAX_FRAMES`` frames, or one that takes more than
            ``MAX_ANIMATION_PIXELS`` pixels to be decoded up to its last frame.
    """
    whole = isinstance(frames, int) and not isinstance(frames, bool)
    require(whole and frames >= 1, "frames must be a whole number from 1", frames)
    if isinstance(source, Image.Image):
        place = source.tell()
        try:
            yield from _frames(source, "The image", frames, max_pixels)
        finally:
            with contextlib.suppress(Exception):  # a damaged file, whose error is on its way
                source.seek(place)
    elif hasattr(source, "shape"):
        yield from _frames(from_array(source), "The image", frames, max_pixels)
    else:
        file, name = open_source(source)
        with file, _open(file, name) as image:
            yield from _frames(image, name, frames, max_pixels)


def _open(file: BinaryIO, name: str) -> Image.Image:
    """Recognise an image; Pillow reads the file only as far as it must."""
    with _one_sentence(name):
        heif = _is_heif(file)
        if heif:
            _register_heif()
        try:
            return _identify(file)
        except UnidentifiedImageError:
            if heif:
                raise _ImageError(f"{name} is HEIC, which needs one more package: pip install pillow-heif.") from None
            raise _ImageError(f"{name} is not an image that Pillow can read; convert it to PNG or JPEG.") from None


def _identify(file: BinaryIO) -> Image.Image:
    Image.preinit()  # the commonest formats; importing the others takes as long again
    try:
        return Image.open(file, formats=[kind for kind in FORMATS if kind in Image.OPEN])
    except UnidentifiedImageError:
        Image.init()
        file.seek(0)
        return Image.open(file, formats=[kind for kind in FORMATS if kind in Image.OPEN])


def _is_heif(file: BinaryIO) -> bool:
    """Whether an open file begins as iPhones' images do; it is rewound."""
    head = file.read(12)
    file.seek(0)
    return head[4:8] == b"ftyp" and head[8:] in _HEIF_BRANDS


def _register_heif() -> None:
    """Teach Pillow HEIC, where the optional package for it is there."""
    try:
        import pillow_heif  # noqa: PLC0415 - an extra, which may be missing
    except ImportError:
        return
    pillow_heif.register_heif_opener()


def _frames(image: Image.Image, name: str, frames: int, max_pixels: int | None) -> Iterator[Image.Image]:
    most = MAX_PIXELS if max_pixels is None else max_pixels
    with _one_sentence(name):
        _check_size(image, name, most)
        count = _count_frames(image, name) if frames > 1 else 1
        if count == 1:
            yield _to_rgb(image)
            return
        for _ in _seek_frames(image, name, count, frames, most):
            yield _apart(image)  # with no name here, or the frame would still be there when the next one is decoded


def _apart(image: Image.Image) -> Image.Image:
    """The frame at hand in RGB; the image itself becomes the next one."""
    rgb = _to_rgb(image)
    return image.copy() if rgb is image else rgb


def _count_frames(image: Image.Image, name: str) -> int:
    """How many frames there are, without decoding any."""
    too_many = _ImageError(f"{name} has more than {MAX_FRAMES} frames; cut it first.")
    if image.format == "TIFF":  # n_frames goes to the end, however far, at 0.1 ms a frame
        before = image.tell()
        with contextlib.suppress(EOFError):
            for place in range(MAX_FRAMES + 1):
                image.seek(place)
            raise too_many
        image.seek(before)
    count = getattr(image, "n_frames", 1)
    if count > MAX_FRAMES:
        raise too_many
    return count


def _seek_frames(image: Image.Image, name: str, count: int, frames: int, most: int) -> Iterator[int]:
    """Move to each wanted frame in turn, with the size of every frame on the way checked before it is decoded."""
    wanted = {int(place) for place in np.linspace(0, count - 1, min(frames, count)).round()}
    decoded = 0
    for place in range(count):
        if place not in wanted and image.format in _RANDOM_ACCESS:
            continue
        image.seek(place)
        _check_size(image, name, most)
        decoded += image.width * image.height
        left = 0 if image.format in _RANDOM_ACCESS else count - 1 - place
        if decoded + left * image.width * image.height > MAX_ANIMATION_PIXELS:
            raise _ImageError(f"{name} has too many pixels in its {count} frames to be read; cut it or scale it down.")
        if place in wanted:
            yield place


def _check_size(image: Image.Image, name: str, most: int) -> None:
    """Before the frame at hand is decoded."""
    width, height = image.size
    if not width or not height:
        raise _ImageError(f"{name} has no pixels; give another image.")
    if max(width, height) > MAX_SIDES_RATIO * min(width, height):
        raise _ImageError(f"{name}, {width} x {height} pixels, is too narrow to be made a square; cut it first.")
    if width * height > most and isinstance(image, ImageFile.ImageFile):  # others are in memory already
        raise Image.DecompressionBombError


def _to_rgb(image: Image.Image) -> Image.Image:
    image = _upright(image)
    if image.mode in HIGH_RANGE_MODES:
        return from_high_range(image)
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(paper, image).convert("RGB")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies what is RGB already


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF data asks; as it lies, where they are damaged, as other programs do."""
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image  # exif_transpose would copy it
        image.load()
        return ImageOps.exif_transpose(image)
    except Exception:  # anything, for data like these; what is wrong with the pixels shows when they are read
        return image


class _ImageError(ValueError):
    """A whole sentence about an image."""


@contextlib.contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    """Whatever Pillow raises, as one sentence."""
    try:
        yield
    except _ImageError:
        raise
    except Image.DecompressionBombError:
        raise ValueError(f"{name} has too many pixels to be opened safely; scale it down first.") from None
    except MemoryError:
        raise ValueError(f"{name} is too large for the memory; scale it down first.") from None
    except Exception as error:  # Pillow's readers raise anything for a damaged file
        raise ValueError(f"{name} is broken ({one_line(str(error))}); give an intact image.") from None
