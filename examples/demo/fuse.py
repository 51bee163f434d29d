"""Turn a trained checkpoint in Apple's training form into the one that the package carries.

    python examples/demo/fuse.py TRAINED mlx_fastvlm/demo

The package's own code merges the tower's branches; what is written has the names and the form of Apple's published
files, in float16 (half the size, and more digits than bfloat16: the weights are small).
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import mlx.core as mx

from mlx_fastvlm.checkpoints.export import timm_form
from mlx_fastvlm.checkpoints.layouts import network_parts
from mlx_fastvlm.checkpoints.weights import read_weights
from mlx_fastvlm.config import FastVlmConfig
from mlx_fastvlm.files import atomic_folder, write_json, write_tensors

SIDE_FILES = ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", "generation_config.json")

# timm's names of a merged tower's parts -> Apple's.
RENAMES = (
    (r"^model\.vision_tower\.timm_model\.", "model.vision_tower.vision_tower.model."),
    (r"\.stem\.", ".patch_embed."),
    (r"\.final_conv\.", ".conv_exp."),
    (r"\.downsample\.proj\.0\.reparam_conv\.", ".downsample.proj.0.lkb_reparam."),
    (r"\.mlp\.(conv|fc1|fc2)\.", r".convffn.\1."),
    (r"\.se\.fc1\.", ".se.reduce."),
    (r"\.se\.fc2\.", ".se.expand."),
    (r"\.gamma$", ""),
    (r"^model\.language_model\.", "model."),
    (r"^model\.multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
    (r"^model\.multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
)


def apple_name(name: str, parts: list[str]) -> str:
    """transformers' name of a tensor -> Apple's, whose tower is a flat list of ``parts``."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    for number, part in enumerate(parts):
        whole = "" if part.endswith((".downsample", ".pos_emb")) else r"(?=\.)"
        name = re.sub(rf"\.{re.escape(part)}{whole}(?=\.)", f".network.{number}", name)
    return name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    settings = json.loads((arguments.trained / "config.json").read_text())
    config = FastVlmConfig.from_dict(settings)
    weights = read_weights(arguments.trained, config)
    parts = network_parts(config.vision_config)
    named = {
        apple_name(name, parts): tensor.astype(mx.float16)
        for name, tensor in timm_form(weights.tensors).items()
        if not name.endswith("num_batches_tracked")
    }
    for tensor in named.values():
        assert mx.isfinite(tensor).all(), "a weight is too large for float16"
    with atomic_folder(arguments.target, force=True) as folder:
        size = write_tensors(folder, named, made_for="pt")
        write_json(folder / "config.json", settings | {"torch_dtype": "float16", "tie_word_embeddings": True})
        for name in SIDE_FILES:
            shutil.copyfile(arguments.trained / name, folder / name)
    print(f"{size / 1e6:.1f} MB in {arguments.target}")


if __name__ == "__main__":
    main()
