"""Small models with adapters that matter: mlx-lm's own begin as nothing."""

import mlx.core as mx
import mlx.nn as nn

from mlx_fastvlm import load
from mlx_fastvlm.checkpoints.adapters import AdapterConfig, write_adapter
from mlx_fastvlm.models.lora import LoRAEmbedding, adapter_tensors, adapters_of, add_adapters, with_keys

IDS = mx.array([[1, *[-200] * 4, 2, 7, 9, 11]])


def pixels():
    return mx.random.uniform(shape=(1, 128, 128, 3), key=mx.random.key(1))


def logits(model):
    """Of a question about an image."""
    return model(IDS, pixels()).logits


def new_model(folder, bits=None, vision=False):
    """A checkpoint in float32, and if so many bits are given, quantized: all that a group of 32 divides."""
    model, _ = load(folder, dtype="float32")
    if bits:
        sides = ("language_model", "lm_head") + (("vision_tower", "multi_modal_projector") if vision else ())

        def chosen(name, layer):
            return name.startswith(sides) and hasattr(layer, "to_quantized") and layer.weight.shape[-1] % 32 == 0

        nn.quantize(model, group_size=32, bits=bits, class_predicate=chosen)
    return model.eval()


def randomize(model, seed=0):
    """Give every adapter numbers that change what the model says."""
    mx.random.seed(seed)
    for layer in adapters_of(model).values():
        for part in ("lora_a", "lora_b") if isinstance(layer, LoRAEmbedding) else ("lora_b",):
            layer[part] = mx.random.normal(layer[part].shape) * 0.02
        if "m" in layer:
            layer.m = layer.m * mx.random.uniform(0.8, 1.2, layer.m.shape)
    mx.eval(model.parameters())


def adapted(folder, kind="lora", bits=None, **options):
    """A model with adapters that matter, and their config."""
    sides = {side: options.pop(side) for side in ("projector", "vision", "embeddings") if side in options}
    model = new_model(folder, bits, sides.get("vision", False))
    options = {"rank": 4, "scale": 3.0, "num_layers": 2, **options}
    config = with_keys(model, AdapterConfig(kind, **options), **sides)
    add_adapters(model, config)
    randomize(model)
    return model, config


def written(target, model, config):
    """The model's adapters as a folder."""
    write_adapter(target, config, adapter_tensors(model))
    return target
