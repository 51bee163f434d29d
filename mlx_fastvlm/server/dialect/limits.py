"""What requests may ask for, whoever sends them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """
    Attributes:
        max_body: bytes of a request, and of all the images and videos that it names.
        max_images: of a request, the frames of animations and videos counted.
        max_tokens: the most tokens that may be asked for.
        default_max_tokens: the most tokens of an answer to a request that sets no limit.
        max_n: answers to one request.
        image_root: files below it may be named as images; None allows no files.
        allow_urls: whether images may be fetched from public addresses.
    """

    max_body: int = 64 * 10**6
    max_images: int = 32
    max_tokens: int = 4096
    default_max_tokens: int = 1024
    max_n: int = 16
    image_root: Path | None = None
    allow_urls: bool = False
