"""The projector: from image features to the decoder's embeddings."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from .config import FastVlmConfig

# The names that transformers' ACT2FN gives these functions.
ACTIVATIONS = {
    "gelu": nn.gelu,
    "gelu_new": nn.gelu_approx,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "relu": nn.relu,
    "silu": nn.silu,
}


class FastVlmMultiModalProjector(nn.Module):
    """Two linear layers around an activation (transformers' class of this name; LLaVA's ``mlp2x_gelu``)."""

    def __init__(self, config: FastVlmConfig):
        super().__init__()
        if config.projector_hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"projector_hidden_act {config.projector_hidden_act!r} is not supported; "
                f"use one of {', '.join(ACTIVATIONS)}."
            )
        bias = config.multimodal_projector_bias
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size, bias=bias)
        self.linear_2 = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size, bias=bias)
        self._act = ACTIVATIONS[config.projector_hidden_act]

    def __call__(self, image_features: mx.array) -> mx.array:
        """(..., vision hidden size) -> (..., text hidden size), float."""
        return self.linear_2(self._act(self.linear_1(image_features)))
