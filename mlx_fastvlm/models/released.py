"""The released models' shapes, with random weights: their speed and their memory, and no sense."""

from __future__ import annotations

import mlx.core as mx
from mlx.utils import tree_map

from ..config import FastVlmConfig
from ..hub import DEMO
from ..processing.processor import FastVlmProcessor
from .fastvlm import FastVlmForConditionalGeneration
from .forms import specialize

# The released models' decoders (their config.json); the tower is the same in all.
_QWEN2 = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
SHAPES = {
    "0.5b": (896, 4864, 24, 14, 2),
    "1.5b": (1536, 8960, 28, 12, 2),
    "7b": (3584, 18944, 28, 28, 4),
}


def random_config(size: str) -> FastVlmConfig:
    """The configuration of a released model, "0.5b", "1.5b" or "7b"."""
    large = size == "7b"
    text = dict(zip(_QWEN2, SHAPES[size]))
    return FastVlmConfig.from_dict(
        {
            "model_type": "llava_qwen2",
            **text,
            "rope_theta": 1e6,
            "vocab_size": 152064 if large else 151936,
            "tie_word_embeddings": not large,
            "image_aspect_ratio": "pad",
        }
    )


def random_model(size: str, dtype: mx.Dtype) -> tuple[FastVlmForConditionalGeneration, FastVlmProcessor]:
    """A model of a released one's shapes with random weights; its tokenizer is the demo checkpoint's."""
    model = FastVlmForConditionalGeneration(random_config(size))

    def draw(x: mx.array) -> mx.array:
        return mx.random.normal(x.shape, dtype=dtype) * 0.02 if x.ndim > 1 else mx.ones(x.shape, dtype)

    model.update(tree_map(draw, model.parameters()))
    model.eval()
    return specialize(model), random_processor()


def random_processor() -> FastVlmProcessor:
    """The demo checkpoint's, with the released models' image size."""
    processor = FastVlmProcessor.from_folder(DEMO, FastVlmConfig.from_file(DEMO / "config.json"))
    processor.image_settings.size = 1024
    return processor
