"""Models that fixtures can't give, and what one says to a fixed question."""

import dataclasses
import functools
import tempfile

import mlx.core as mx
import numpy as np

from mlx_fastvlm import FastVlmConfig, FastVlmForConditionalGeneration, FastVlmProcessor, load
from mlx_fastvlm.models.forms import specialize
from tests.support import checkpoints, small
from tests.support.images import IMAGE


@functools.cache
def wide_model():
    """A model with heads of 64 channels, as the real ones have, that rambles: random weights, no end of sequence.

    A function and no fixture, so that hypothesis can use it.
    """
    text = {**small.TEXT, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    config = FastVlmConfig(small.VISION, text, image_token_id=-200, image_aspect_ratio="pad")
    mx.random.seed(0)
    model = FastVlmForConditionalGeneration(config)
    for name, module in model.named_modules():
        if "weight" in module and module.weight.ndim == 2:  # MLX's own are too small for attention to matter
            module.weight = mx.random.normal(module.weight.shape) * (2 if "_proj" in name else 1) / 8
    mx.eval(specialize(model).parameters())
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.write_tokenizer(folder)
        processor = FastVlmProcessor.from_folder(folder, config)
    settings = dataclasses.replace(processor.image_settings, size=128)
    return model, dataclasses.replace(processor, eos_token_ids=frozenset(), image_settings=settings)


def logits(folder):
    """The answer's first logits to a fixed question about a fixed image, float32."""
    model, processor = load(folder, dtype="float32")
    inputs = processor(text="<image>\nWhat is this?", images=IMAGE, image_size=128)
    return np.array(model(inputs["input_ids"], inputs["pixel_values"]).logits)
