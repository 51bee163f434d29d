"""Writes the small FastVLM as a checkpoint in any layout; the names are worked out apart from the package's tables."""

import json
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
from safetensors.numpy import save_file

from tests.support import small

TOWER = "model.vision_tower.timm_model."
# Apple's flat list for small.VISION, counted by hand: blocks, downsampling, blocks, ... and a position convolution
# before the blocks of the two attention stages.
NETWORK = {
    "stages.0.blocks": 0,
    "stages.1.downsample": 1,
    "stages.1.blocks": 2,
    "stages.2.downsample": 3,
    "stages.2.blocks": 4,
    "stages.3.downsample": 5,
    "stages.3.pos_emb": 6,
    "stages.3.blocks": 7,
    "stages.4.downsample": 8,
    "stages.4.pos_emb": 9,
    "stages.4.blocks": 10,
}
PARTS = [
    ("pos_enc.", "pe."),
    ("downsample.proj.0.reparam_conv", "downsample.proj.0.lkb_reparam"),
    ("conv_kxk", "rbr_conv"),
    ("conv_scale", "rbr_scale"),
    ("identity", "rbr_skip"),
    ("large_conv", "lkb_origin"),
    (".gamma", ""),
    ("mlp.", "convffn."),
    ("se.fc1", "se.reduce"),
    ("se.fc2", "se.expand"),
    ("final_conv", "conv_exp"),
    ("stem.", "patch_embed."),
]


def tower_part(name, network=NETWORK):
    """timm's name of a part of the tower -> Apple's; ``network``: numbers of the parts of another tower."""
    for timm, apple in PARTS:
        name = name.replace(timm, apple)
    for stage, number in network.items():
        name = re.sub(rf"^{re.escape(stage)}\.", f"network.{number}.", name)
    return name


def apple(tensors, network=NETWORK):
    out = {}
    for name, value in tensors.items():
        if name.startswith(TOWER):
            name = "model.vision_tower.vision_tower.model." + tower_part(name.removeprefix(TOWER), network).replace(
                "downsample.", ""
            ).replace("pos_emb.", "")
        name = name.replace("model.language_model.", "model.")
        name = name.replace("multi_modal_projector.linear_1", "mm_projector.0")
        name = name.replace("multi_modal_projector.linear_2", "mm_projector.2")
        out[name] = value
    # Beside what inference needs, Apple's files carry the classification head.
    last = f"{TOWER}final_conv."
    channels = max(value.shape[0] for name, value in tensors.items() if name.startswith(last) and value.ndim == 4)
    out["model.vision_tower.vision_tower.model.head.proj"] = np.ones((channels, 768), np.float32)
    return out


def mlx_vlm(tensors, network=NETWORK):
    out = {}
    for name, value in apple(tensors, network).items():
        if name.endswith("num_batches_tracked"):
            continue
        if value.ndim == 4:
            value = value.transpose(0, 2, 3, 1)
        elif "layer_scale" in name:
            value = value.transpose(1, 2, 0)
        name = name.replace("model.vision_tower.vision_tower.model.", "vision_tower.vision_model.")
        name = name.replace("patch_embed.", "patch_embed.blocks.").replace("model.mm_projector", "mm_projector")
        name = re.sub(r"^model\.(embed_tokens|layers|norm)", r"language_model.model.\1", name)
        out[name.replace("lm_head.", "language_model.lm_head.")] = np.ascontiguousarray(value)
    return out


def packed(tensors, chosen, bits):
    """The tensors with the matrices that ``chosen(name, value)`` picks quantized, in groups of 32."""
    out = {}
    for name, value in tensors.items():
        if not chosen(name, value):
            out[name] = value
            continue
        stem = name.removesuffix(".weight")
        parts = mx.quantize(mx.array(value), group_size=32, bits=bits)
        out |= {f"{stem}.{part}": np.array(x) for part, x in zip(("weight", "scales", "biases"), parts)}
    return out


LAYOUTS = {"transformers": dict, "apple": apple, "mlx-vlm": mlx_vlm}


def small_tensors(training=False, head=None):
    """transformers' names; ``head``: None (tied, not in the file), "copy" (tied, in the file) or "own" (untied)."""
    tensors = small.tensors("inference")
    if training:
        tensors = {name: value for name, value in tensors.items() if not name.startswith(TOWER)}
        tensors |= small.tensors("training")
    embedding = tensors["model.language_model.embed_tokens.weight"]
    if head == "copy":
        tensors["lm_head.weight"] = embedding.copy()
    elif head == "own":
        tensors["lm_head.weight"] = small.tensor("lm_head.weight", embedding.shape)
    return tensors


def apple_config(tied=True):
    return {
        "architectures": ["LlavaQwen2ForCausalLM"],
        "model_type": "llava_qwen2",
        "mm_vision_tower": "mobileclip_l_128",
        "mm_hidden_size": 512,
        "mm_projector_type": "mlp2x_gelu",
        "image_aspect_ratio": "pad",
        "vision_config": {**small.VISION, "image_size": 128},
        "tie_word_embeddings": tied,
        "eos_token_id": 258,
        **small.TEXT,
    }


def config(layout, tied=True):
    return small.transformers_config(tied) if layout == "transformers" else apple_config(tied)


def byte_alphabet():
    """GPT-2's printable character for each byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in kept else next(others)) for byte in range(256)]


def write_tokenizer(folder):
    """Qwen2's kind of tokenizer, but only bytes in it: <|endoftext|> 256, <|im_start|> 257, <|im_end|> 258."""
    folder = Path(folder)
    vocab = {character: id for id, character in enumerate(byte_alphabet())}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    added = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}))


def write(folder, layout="apple", *, tensors=None, config_dict=None, shards=1, **weights):
    """Write the small model's folder in a layout; ``weights`` as for :func:`small_tensors`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    named = LAYOUTS[layout](small_tensors(**weights) if tensors is None else tensors)
    tied = weights.get("head") != "own"
    (folder / "config.json").write_text(json.dumps(config(layout, tied) if config_dict is None else config_dict))
    write_tokenizer(folder)
    if layout == "transformers":
        crop = {"crop_size": {"height": 128, "width": 128}, "size": {"shortest_edge": 128}}
        crop |= {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}  # else they would be CLIP's
        (folder / "preprocessor_config.json").write_text(json.dumps(crop))
    if shards == 1:
        save_file(named, folder / "model.safetensors")
        return folder
    names = sorted(named)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: named[name] for name in names[i::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
