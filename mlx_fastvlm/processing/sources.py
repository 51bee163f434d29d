"""Where an image or a video comes from -> an open file with its bytes, and what errors call it."""

from __future__ import annotations

import base64
import binascii
import os
import sys
import urllib.parse
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import one_line
from .fetch import fetch, shown_url

# How images begin, for telling base64 from a path: JPEG, PNG, GIF, WebP, BMP, TIFF twice, JPEG 2000.
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")


def open_source(source: Any, kind: str = "image") -> tuple[BinaryIO, str]:
    """Open a path, URL, ``data:`` URI, base64, bytes, ``"-"`` or a file that is open already.

    Args:
        kind: what errors call what is wanted.

    Returns:
        A file at its beginning, which the caller closes and which is never the caller's own, and its name in errors.

    Raises:
        FileNotFoundError, OSError, ValueError: as for :func:`mlx_fastvlm.load_image`.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _held(bytes(source), f"The {kind}", kind)
    if isinstance(source, os.PathLike):
        return _open_path(Path(source), kind)
    if isinstance(source, str):
        return _open_text(source, kind)
    if hasattr(source, "read"):
        return _held(_read_file(source), "The open file", kind)
    raise ValueError(
        f"The {kind} can't be read from {type(source).__name__}; give a path, URL, data: URI, bytes or open file"
        f"{', a PIL image or an array' if kind == 'image' else ''}."
    )


def _open_text(text: str, kind: str) -> tuple[BinaryIO, str]:
    beginning = text[:8].lower()
    if text == "-":
        return _held(_read_standard_input(), "Standard input", kind)
    if beginning.startswith("data:"):
        return _held(_from_data_uri(text), "The data: URI", kind)
    if beginning.startswith(("http://", "https://")):
        return _held(fetch(text, kind), shown_url(text), kind)
    if not text:
        raise ValueError(f"The {kind}'s name is empty; give a path or a URL.")
    data = _from_base64(text)
    return _open_path(Path(text), kind) if data is None else _held(data, "The base64 text", kind)


def _held(data: bytes, name: str, kind: str) -> tuple[BinaryIO, str]:
    if not data:
        raise ValueError(f"{name} is empty; give another {kind}.")
    return BytesIO(data), name


def _open_path(path: Path, kind: str) -> tuple[BinaryIO, str]:
    name = one_line(str(path))
    try:
        path = path.expanduser()
        exists = path.exists()
    except (OSError, RuntimeError, ValueError):  # a name too long for the system; a user that is none; a zero byte
        exists = False
    if not exists:
        raise FileNotFoundError(f"{name}: no such {kind}; check the path.")
    if not path.is_file():
        raise ValueError(f"{name} is not a file; give the path of a file.")
    try:
        file = path.open("rb")
    except OSError as error:
        raise OSError(f"{name} can't be read ({error.strerror}); check its permissions.") from None
    if not os.fstat(file.fileno()).st_size:
        file.close()
        raise ValueError(f"{name} is empty; give another {kind}.")
    return file, name


def _read_standard_input() -> bytes:
    if sys.stdin is None:
        raise ValueError("Standard input is closed; give a path or a URL.")
    return sys.stdin.buffer.read()


def _read_file(file: Any) -> bytes:
    """All of an open file, from its beginning as Pillow does, where it can be rewound; its place stays."""
    try:
        try:
            place = file.tell()
            file.seek(0)
        except (AttributeError, OSError):  # a pipe, or an answer of a server
            return _as_bytes(file.read())
        try:
            return _as_bytes(file.read())
        finally:
            file.seek(place)
    except _NotBytes as error:
        raise ValueError(f"The open file gives {error}, not bytes; open it in binary mode.") from None
    except Exception as error:  # whatever an object of another library raises
        raise ValueError(f"The open file can't be read ({one_line(str(error))}); open it again.") from None


class _NotBytes(Exception):
    pass


def _as_bytes(data: Any) -> bytes:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise _NotBytes(type(data).__name__)
    return bytes(data)


def _from_data_uri(uri: str) -> bytes:
    header, comma, body = uri.partition(",")
    if not comma:
        raise ValueError("The data: URI has no comma before its data; it should look like data:image/png;base64,....")
    data = urllib.parse.unquote_to_bytes(body)
    if header.rpartition(";")[2].strip().lower() != "base64":
        return data
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error:
        raise ValueError("The data: URI is not valid base64; encode it again.") from None


def _from_base64(text: str) -> bytes | None:
    """The bytes of an image in base64, without the ``data:`` in front; None for anything else, such as a path."""
    packed = "".join(text.split())
    if len(packed) < 64:
        return None
    try:
        data = base64.b64decode(packed, validate=True)
    except ValueError:  # letters that base64 does not have
        return None
    return data if data.startswith(_BEGINNINGS) or data[4:8] == b"ftyp" else None  # HEIC and AVIF
