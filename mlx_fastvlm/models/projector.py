"""The projector: from image features to the decoder's embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn

from .activations import ACTIVATIONS

if TYPE_CHECKING:
    from ..config import FastVlmConfig


class FastVlmMultiModalProjector(nn.Module):
    """``linear_1``, an activation, ``linear_2`` (transformers' class of this name; LLaVA's ``mlp2x_gelu``).

    LLaVA's other projectors have more linear layers with the activation between them (``mlp3x_gelu``), one
    (``linear``) or none (``identity``): see ``FastVlmConfig.projector_type``.

    Raises:
        ValueError: for an activation or a projector type that is not known.
    """

    def __init__(self, config: FastVlmConfig) -> None:
        super().__init__()
        if config.projector_hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"projector_hidden_act {config.projector_hidden_act!r} is not supported; "
                f"use one of {', '.join(ACTIVATIONS)}."
            )
        width, text_width = config.vision_config.hidden_size, config.text_config.hidden_size
        self._layers = config.projector_layers
        for number in range(1, self._layers + 1):
            self[f"linear_{number}"] = nn.Linear(width, text_width, bias=config.multimodal_projector_bias)
            width = text_width
        if self._layers > 1:
            self.act = ACTIVATIONS[config.projector_hidden_act]()

    def __call__(self, image_features: mx.array) -> mx.array:
        """(..., vision hidden size) -> (..., text hidden size), in the weights' dtype."""
        x = image_features
        for number in range(1, self._layers + 1):
            x = self[f"linear_{number}"](x if number == 1 else self.act(x))
        return x
