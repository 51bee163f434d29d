"""Weights -> a model of a class that is handed in, checked, in one dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..checkpoints.quantization import quantize_modules
from ..checkpoints.weights import Weights, cast, choose_dtype, read_weights
from .forms import specialize
from .threads import end_streams_with_thread

if TYPE_CHECKING:
    from ..config import FastVlmConfig

Model = TypeVar("Model", bound=nn.Module)


def load_model(
    cls: Callable[[FastVlmConfig], Model], folder: Path, config: FastVlmConfig, *, dtype: str | mx.Dtype | None = None
) -> Model:
    """Build a model from a folder's tensors, reparameterized and renamed on the way. Nothing is computed yet.

    Args:
        cls: the class of the model, made from a config.
        dtype: see :func:`mlx_fastvlm.load`.
    """
    end_streams_with_thread()
    headless = not getattr(cls, "has_head", True)
    return build_model(cls, read_weights(folder, config, headless=headless), config, dtype)


def build_model(
    cls: Callable[[FastVlmConfig], Model], weights: Weights, config: FastVlmConfig, dtype: str | mx.Dtype | None = None
) -> Model:
    """The model with these weights, in ``dtype``, and the forms of its layers that suit the device.

    Raises:
        ValueError: where they do not fit its config.
    """
    model = fitting_model(cls, weights, config)
    chosen = choose_dtype(dtype) if dtype else _default_dtype(weights)
    model.load_weights(list(cast(weights.tensors, chosen).items()))
    model.eval()
    return specialize(model)


def fitting_model(cls: Callable[[FastVlmConfig], Model], weights: Weights, config: FastVlmConfig) -> Model:
    """The model as it is made, quantized as the weights are, without them; its own random ones are never computed.

    Raises:
        ValueError: where tensors are missing, unexpected, or of a wrong shape or type.
    """
    model = cls(replace(config, tie_word_embeddings=weights.tied))
    quantize_modules(model, weights.modules)
    # Nor would be what MLX's generator goes through on their behalf, a chain that would grow with every model.
    mx.eval(mx.random.state[0])  # type: ignore[index]  # its stub calls it an object
    faults = copy.deepcopy(weights.faults)
    faults.compare(weights.tensors, dict(tree_flatten(model.parameters())), weights.sources)
    faults.report(weights.folder)
    return model


def _default_dtype(weights: Weights) -> mx.Dtype:
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    return weights.stored_dtype if on_gpu else mx.float32
