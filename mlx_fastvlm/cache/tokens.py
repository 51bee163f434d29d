"""Tokens as caches compare them: text by its ids, images by what they show."""

from __future__ import annotations

from collections.abc import Sequence

# A text token is its id; the i-th token of an image is (the image's fingerprint, i).
Token = int | tuple[str, int]


def mark_images(ids: list[int], image_token_id: int, fingerprints: list[str], tokens_per_image: int) -> list[Token]:
    """Token ids with each image's placeholders replaced by what they stand for."""
    placeholders = ((fingerprint, i) for fingerprint in fingerprints for i in range(tokens_per_image))
    return [next(placeholders) if id == image_token_id else id for id in ids]


def in_common(some: Sequence[Token], others: Sequence[Token]) -> int:
    """How many tokens at the beginning of two lists are equal."""
    return next((i for i, (a, b) in enumerate(zip(some, others)) if a != b), min(len(some), len(others)))
