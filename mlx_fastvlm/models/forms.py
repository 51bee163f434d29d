"""Which layers a model computes with: the plain ones, which read like the paper, or a device's faster forms of them.

A form is a subclass of a plain layer, with its parameters and its signature, so to choose one is to exchange a layer's
class. All else stays: names of parameters, what is frozen, who holds the layer. What was put in a layer's place, an
adapter around it for example, is left alone, and the layers inside it are not.
"""

from __future__ import annotations

from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn

from . import cpu, gpu

Model = TypeVar("Model", bound=nn.Module)

FORMS = {mx.DeviceType.cpu: cpu.FORMS, mx.DeviceType.gpu: gpu.FORMS}
PLAIN = {form: plain for forms in FORMS.values() for plain, form in forms.items()}


def specialize(model: Model, device: mx.DeviceType | None = None) -> Model:
    """Choose the forms for a device, in place.

    Loading does it. Do it again for a model that moved to another device, and where layers are new: quantized,
    replaced, or fused from an adapter. A plain layer computes the same and takes longer.

    Args:
        device: by default the one that MLX uses.

    Returns:
        The model.
    """
    forms = FORMS[mx.default_device().type if device is None else device]
    for layer in model.modules():
        plain = PLAIN.get(type(layer), type(layer))
        _become(layer, forms.get(plain, plain))
    return model


def plain(model: Model) -> Model:
    """Undo :func:`specialize`, in place; returns the model."""
    for layer in model.modules():
        _become(layer, PLAIN.get(type(layer), type(layer)))
    return model


def _become(layer: nn.Module, kind: type[nn.Module]) -> None:
    if type(layer) is not kind:
        layer.__class__ = kind
