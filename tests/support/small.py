"""A small FastVLM with random weights: its configuration, and tensors that need no file and no torch.

Every tensor is drawn from a generator seeded by its name, so the recording script and the tests make the same ones.
``RandomState`` is numpy's frozen generator: its numbers never change. Names and shapes come from ``shapes.json``.
"""

import json
import zlib
from pathlib import Path

import numpy as np

REFERENCE = Path(__file__).parent / "reference"

VISION = {"layers": [1, 2, 1, 2, 1], "embed_dims": [16, 32, 64, 128, 256]}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 512,
}
IMAGE_TOKEN = 300
SIDES = (128, 192)  # height, width: 2 x 3 tokens
TOKENS_PER_IMAGE = 6

# Two images in the first row, one in the second, and text around them.
TEXT_IDS = [
    [5, 9, 12, "image", 7, 7, 31, "image", 40, 41, 2],
    [250, "image", 19, 3, 77],
]
PADDING = 1


def transformers_config(tie_word_embeddings=True):
    """``config.json`` in transformers' layout."""
    return {
        "model_type": "fast_vlm",
        "vision_config": {
            "model_type": "timm_wrapper",
            "architecture": "fastvit_mci3",
            "do_pooling": True,
            "global_pool": "avg",
            "hidden_size": 512,
            "initializer_range": 0.02,
            "model_args": {**VISION, "inference_mode": True},
        },
        "text_config": {"model_type": "qwen2", "tie_word_embeddings": tie_word_embeddings, **TEXT},
        "image_token_index": IMAGE_TOKEN,
        "tie_word_embeddings": tie_word_embeddings,
    }


def tensor(name, shape, seed=0):
    """The weight of this name: plausible sizes, nothing equal, nothing zero."""
    random = np.random.RandomState(zlib.crc32(name.encode()) ^ seed)
    values = random.standard_normal(shape)
    if name.endswith("num_batches_tracked"):
        return np.array(1, np.int64)
    if name.endswith("running_var"):
        values = 0.5 + np.abs(values)
    elif "layer_scale" in name:
        values = 0.6 + 0.2 * values
    elif name.endswith(("running_mean", "bias")):
        values = 0.1 * values
    elif len(shape) == 1:  # norms
        values = 1.0 + 0.2 * values
    elif "embed_tokens" in name:
        values = 0.5 * values
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


def tensors(form):
    """Name -> array, in transformers' layout; ``form`` is "inference" or "training" (a tower in branches)."""
    shapes = json.loads((REFERENCE / "shapes.json").read_text())[form]
    return {name: tensor(name, shape) for name, shape in shapes.items()}


def pixels(count):
    """(count, 3, height, width) in [0, 1], PyTorch's order."""
    return np.random.RandomState(0).random_sample((count, 3, *SIDES)).astype(np.float32)


def expand(row):
    """Ids with each image's placeholders written out."""
    return [id for item in row for id in ([IMAGE_TOKEN] * TOKENS_PER_IMAGE if item == "image" else [item])]


def batch():
    """``input_ids``, ``attention_mask`` and ``position_ids`` of TEXT_IDS, padded on the left."""
    rows = [expand(row) for row in TEXT_IDS]
    longest = max(map(len, rows))
    ids = np.array([[PADDING] * (longest - len(row)) + row for row in rows])
    mask = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    return ids, mask, positions


def labels():
    """Of :func:`batch`: the text. A row's first token has nothing but padding to be predicted from."""
    ids, mask, _ = batch()
    return np.where((mask.cumsum(axis=1) > 1) & (ids != IMAGE_TOKEN), ids, -100)


SAMPLE = 32


def sample(array):
    """A few values spread over an array, for comparing what would be too much to keep."""
    flat = np.asarray(array).reshape(-1)
    return flat[:: max(1, flat.size // SAMPLE)][:SAMPLE]


def trainable(names):
    """Those tensors of the small model that have gradients, in a fixed order."""
    return sorted(name for name in names if not name.endswith(("running_mean", "running_var", "num_batches_tracked")))


ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "relu", "silu")
PROJECTORS = {"linear": ("",), "mlp1x_gelu": ("0.",), "mlp3x_gelu": ("0.", "2.", "4.")}  # and LLaVA's tensor names
RESIZED = (330, 64)  # new_num_tokens, pad_to_multiple_of


def projector_tensors(kind):
    """LLaVA's projector of a type: name -> array, as in Apple's files."""
    tensors, width = {}, 512
    for part in PROJECTORS[kind]:
        tensors[f"model.mm_projector.{part}weight"] = (TEXT["hidden_size"], width)
        tensors[f"model.mm_projector.{part}bias"] = (TEXT["hidden_size"],)
        width = TEXT["hidden_size"]
    return {name: tensor(name, shape) for name, shape in tensors.items()}


def odd_image(width, height):
    """An RGB image of smooth waves and noise, (height, width, 3) uint8."""
    random = np.random.RandomState(width * 10000 + height)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / (7 + c)) + np.cos(y / (5 + c)) for c in range(3)], axis=-1)
    return np.clip(128 + 60 * waves + random.randint(-20, 20, waves.shape), 0, 255).astype(np.uint8)


ODD_SIZES = [(300, 200), (201, 333), (64, 64), (1000, 37), (128, 127)]
SQUARE = 64

# Fine-tuning: which layers of a decoder layer have adapters, and how; of the last two of its three layers.
TUNED = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
RANK, SCALE, RATE = 4, 3.0, 1e-2
# AdamW's. Some keys' biases hardly matter: by their gradients' rounding, 1e-8 would make a step of full length.
EPS = {"lora": 1e-8, "dora": 1e-8, "full": 1e-4}


def adapter(name, shape):
    """An adapter's matrix by its name and this package's shape; None for ``m``, which the layer gives."""
    if name.endswith(".m"):
        return None
    return tensor(name, shape[::-1]).T.copy() if name.endswith("lora_a") else 0.3 * tensor(name, shape)
