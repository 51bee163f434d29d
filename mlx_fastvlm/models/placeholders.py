"""Image features in the places of their placeholders."""

from __future__ import annotations

import mlx.core as mx

# Types that hold every placeholder, -200 among them, and every id of a vocabulary.
_WIDE = (mx.int32, mx.int64)


def signed(ids: mx.array) -> mx.array:
    """Token ids of any integer type, ``argmax``'s uint32 too, in one that a negative placeholder can be compared in."""
    return ids if ids.dtype in _WIDE else ids.astype(mx.int32)


def check_count(mask: mx.array, image_features: mx.array) -> bool:
    """Whether there are as many placeholders as features; False where that can't be known.

    Args:
        mask: (batch, length), bool, True at the placeholders.
        image_features: (images, tokens, text hidden size).

    Raises:
        ValueError: where there are not.
    """
    features = image_features.shape[0] * image_features.shape[1]
    try:
        tokens = mask.sum().item()
    except ValueError:  # inside mx.compile or mx.vmap, where arrays have no values yet
        return False
    if tokens != features:
        raise ValueError(f"Image features and image tokens do not match, tokens: {tokens}, features: {features}.")
    return True


def fill(inputs_embeds: mx.array, mask: mx.array, image_features: mx.array, counted: bool) -> mx.array:
    """Write features over placeholders, in reading order.

    Args:
        inputs_embeds: (batch, length, text hidden size).
        mask: (batch, length), bool, True at the placeholders.
        image_features: (images, tokens, text hidden size).
        counted: what :func:`check_count` said. Where there was no knowing, placeholders that are not as many as the
            features make everything NaN, since nothing can be raised in there.

    Returns:
        The shape and dtype of ``inputs_embeds``.
    """
    features = image_features.flatten(0, 1)
    nth = mx.cumsum(mask.flatten().astype(mx.int32)) - 1  # which feature a placeholder takes
    taken = features[mx.clip(nth, 0, len(features) - 1)].reshape(inputs_embeds.shape)
    filled = mx.where(mask[..., None], taken.astype(inputs_embeds.dtype), inputs_embeds)
    return filled if counted else mx.where(mask.sum() == len(features), filled, mx.nan)
