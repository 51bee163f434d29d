"""The small FastVLM of transformers' own tests: its configuration, weights, and a batch of inputs."""

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlx_fastvlm import FastVlmConfig, FastVlmForConditionalGeneration, FastVlmModel

# Their shapes, in the form of Python's callers: tuples too.
TEXT = {
    "model_type": "qwen2",
    "is_training": True,
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 37,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "initializer_range": 0.02,
    "pad_token_id": 1,
}
VISION = {
    "image_size": 16,
    "patch_size": 8,
    "num_channels": 3,
    "hidden_size": 32,
    "initializer_range": 0.02,
    "architecture": "fastvit_mci3",
    "do_pooling": True,
    "global_pool": "avg",
    "model_args": {
        "inference_mode": True,
        "layers": (2, 2),
        "embed_dims": (8, 16),
        "mlp_ratios": (4, 4),
        "se_downsamples": (False, False),
        "downsamples": (False, True),
        "pos_embs": (None, None),
        "token_mixers": ("repmixer", "repmixer"),
        "lkc_use_act": True,
        "stem_use_scale_branch": False,
    },
}
ROWS, IMAGE_TOKENS, LENGTH, PAD, IMAGE = 3, 4, 11, 1, 0
CLASSES = [FastVlmModel, FastVlmForConditionalGeneration]


def config(text=None, **changes):
    return FastVlmConfig(VISION, {**TEXT, **(text or {})}, image_token_id=IMAGE, **changes)


def made(cls=FastVlmForConditionalGeneration, **how):
    """A model of their configuration with weights that matter; theirs of 0.02 would hide most faults."""
    mx.random.seed(3)
    model = cls(config(**how))
    model.update(tree_map(lambda x: x + mx.random.normal(x.shape) * 0.15, model.parameters()))
    mx.eval(model.parameters())
    return model.eval()


def example():
    """Rows of four placeholders and seven tokens, an image each; no padding."""
    random = np.random.RandomState(5)
    ids = random.randint(2, TEXT["vocab_size"], (ROWS, LENGTH))
    ids[:, :IMAGE_TOKENS] = IMAGE
    pixels = random.random_sample((ROWS, 16, 16, 3)).astype(np.float32)
    return {"input_ids": mx.array(ids), "pixel_values": mx.array(pixels), "attention_mask": mx.ones(ids.shape)}


def first(output):
    """What their outputs have at the first place."""
    found = output.logits if hasattr(output, "logits") else output.last_hidden_state
    return np.array(found.astype(mx.float32))


def same(a, b, atol=1e-5):
    return np.allclose(np.array(a), np.array(b), atol=atol)
