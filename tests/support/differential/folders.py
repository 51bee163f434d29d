"""A case -> its checkpoint: ``config.json`` of each layout, weights, tokenizer, chat template, image settings."""

import json
import random
from pathlib import Path

from safetensors.numpy import save_file

from tests.support import checkpoints, small
from tests.support.differential.draws import SQUARE, Case
from tests.support.templates import REAL

TEMPLATES = list(REAL.values())
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
TOWER = "model.vision_tower.timm_model."
HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
LLAVA = ("apple", "mlx-vlm")


# The configuration


def widths(case: Case) -> list[int]:
    found = [case["width"]]
    for doubles in case["doubles"][: case["stages"] - 1]:
        found.append(found[-1] * (2 if doubles else 1))
    return found


def patch_size(case: Case) -> int:
    """Pixels of a token's side, as timm halves the image: where it is told to, and where the width changes."""
    stages = case["stages"]
    said = tower(case).get("downsamples", [False, True, True, True, True])[:stages]
    width = widths(case)
    halved = [now or before != after for now, before, after in zip(said, width[:1] + width, width)]
    return 4 * 2 ** sum(halved)


def side(case: Case) -> int:
    return case["image"] * patch_size(case)


def tower(case: Case) -> dict:
    """timm's ``model_args``."""
    stages, width, odd = case["stages"], widths(case), dict(case["odd tower"])
    args = {"layers": case["depths"][:stages], "embed_dims": width, "mlp_ratios": case["mlp_ratios"][:stages]}
    args |= {name: case[name] for name in ("repmixer_kernel_size", "down_patch_size", "cls_ratio")}
    if case["attention"] != "timm's":
        args["token_mixers"] = ["attention" if stage in case["attention"] else "repmixer" for stage in range(stages)]
    if case["pos_embs"] == "none":
        args["pos_embs"] = [None] * stages
    if odd.pop("embed_dims too long", False):
        args["embed_dims"] = [*width, width[-1] * 2]
    if not all(case["doubles"][: stages - 1]) and "downsamples" not in odd:
        args["downsamples"] = [False, *case["doubles"][: stages - 1]]
    return {**args, **odd, "inference_mode": not case["training"]}


def text(case: Case, tokens: int) -> dict:
    """Qwen2's configuration; ``tokens``: how many the tokenizer knows."""
    heads = case["num_key_value_heads"] * case["groups"]
    natural = case["hidden_size"] == "heads"
    described = {
        "model_type": "qwen2",
        "num_attention_heads": heads,
        "hidden_size": heads * case["head_dim"] if natural else case["hidden_size"],
        "vocab_size": tokens + case["vocabulary"],
        **{
            name: case[name]
            for name in (
                "num_hidden_layers",
                "num_key_value_heads",
                "intermediate_size",
                "rms_norm_eps",
                "max_position_embeddings",
                "hidden_act",
            )
        },
    }
    if case["head_dim said"] or (case["head_dim said"] is False and not natural):
        described["head_dim"] = case["head_dim"]
    elif case["head_dim said"] is None and natural:
        described["head_dim"] = None
    kind, theta = case["rope_type"], case["rope_theta"]
    nested = {"rope_type": kind, "rope_theta": theta, **({} if kind == "default" else {"factor": 2.0})}
    if kind == "llama3":
        nested |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    described |= {
        "top": {"rope_theta": theta},
        "parameters": {"rope_parameters": nested},
        "both": {"rope_parameters": nested, "rope_theta": 123.0},
        "none": {},
        "scaling": {"rope_scaling": {key: nested[key] for key in nested if key != "rope_theta"}, "rope_theta": theta},
    }[case["rope"]]
    for name, value in case["odd text"].items():
        if name == "layer_types":
            value = [value] * case["num_hidden_layers"]
        described[name] = value
        if value == "left out":
            del described[name]
    return described


def config(case: Case, tokens: int, image_token: int) -> dict:
    """``config.json`` in transformers' layout. A LLaVA file says nothing of the projector, so it is LLaVA's there."""
    llava = case["layout"] in LLAVA
    described = {
        "model_type": "fast_vlm",
        "vision_config": {
            "model_type": "timm_wrapper",
            "architecture": case["architecture"],
            "do_pooling": True,
            "global_pool": "avg",
            "hidden_size": int(widths(case)[-1] * case["odd tower"].get("cls_ratio", case["cls_ratio"])),
            "initializer_range": 0.02,
            "model_args": tower(case),
        },
        "text_config": text(case, tokens),
        case["image token's name"]: image_token,
        "projector_hidden_act": "gelu" if llava else case["projector_hidden_act"],
        "multimodal_projector_bias": llava or case["multimodal_projector_bias"],
        **case["odd whole"],
    }
    tied = case["head"] != "own"
    described["text_config"]["tie_word_embeddings"] = tied
    if case["head"] != "tied by text_config":
        described["tie_word_embeddings"] = tied
    return described


def llava_config(case: Case, described: dict) -> dict:
    """The same as Apple's and mlx-vlm's files say it: the decoder at the top, images as in LLaVA."""
    args = dict(described["vision_config"]["model_args"])
    args.pop("inference_mode")
    positions = args.pop("pos_embs", None)
    if positions:
        args["pos_embs_shapes"] = positions
    whole = {key: value for key, value in described.items() if key in case["odd whole"]}
    return {
        **whole,
        **described["text_config"],
        "architectures": ["LlavaQwen2ForCausalLM"],
        "model_type": "llava_qwen2",
        "mm_vision_tower": f"mobileclip_l_{side(case)}",
        "mm_hidden_size": described["vision_config"]["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "image_aspect_ratio": case["aspect"],
        "vision_config": {**args, "image_size": side(case)},
    }


# Weights


def tensors(case: Case, shapes: dict[str, tuple[int, ...]]) -> dict:
    """transformers' names -> random weights; what is tied is not in the file, unless the case says so."""
    made = {name: small.tensor(name, shape, case["weights"]) for name, shape in sorted(shapes.items())}
    if case["head"] in ("tied", "tied by text_config"):
        made.pop(HEAD, None)
    elif case["head"] == "copy":
        made[HEAD] = made[EMBEDDING].copy()
    return made


def network(shapes) -> dict[str, int]:
    """The tower's parts in Apple's flat list: for each stage its downsampling, its positions, its blocks."""
    parts = []
    for stage in range(5):
        for part in ("downsample", "pos_emb", "blocks"):
            name = f"stages.{stage}.{part}"
            if any(tensor.startswith(f"{TOWER}{name}.") for tensor in shapes):
                parts.append(name)
    return {name: number for number, name in enumerate(parts)}


def llava_tensors(case: Case, made: dict) -> dict:
    return checkpoints.LAYOUTS[case["layout"]](made, network(made))


# Prompts and images


def write_llava_prompt_files(folder: Path, case: Case, ids: dict[str, int]):
    """As in Apple's files, which have no token for images; it is the last one, so that none of the others moves."""
    write_prompt_files(folder, case, SPECIAL[:3])
    if case["tokenizer's files"] == "tokenizer.json":  # the other place where Qwen2's tokenizers have them
        write(folder / "added_tokens.json", {content: id for content, id in ids.items() if content != "<image>"})
        write(folder / "tokenizer_config.json", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})


def image_settings(case: Case) -> dict:
    """``preprocessor_config.json``."""
    base = {"crop_size": {"height": SQUARE, "width": SQUARE}, "size": {"shortest_edge": SQUARE}}
    base |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    chosen = {
        name: value for name, value in {**base, **case["settings"], **case["odd settings"]}.items() if value is not None
    }
    return _filled(chosen, side(case))


def _filled(value, pixels: int):
    if isinstance(value, dict):
        return {key: _filled(item, pixels) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, pixels) for item in value]
    return pixels if value == SQUARE else value


def vocabulary(case: Case) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Bytes and random merges of them, the likelier the more they look like text."""
    rng = random.Random(case["tokenizer"])
    letters = checkpoints.byte_alphabet()
    common = [letters[byte] for byte in b" etaoinshr,.<|>_\n09ES" + "é東".encode()]
    known, merges = {letter: id for id, letter in enumerate(letters)}, []
    while len(merges) < case["merges"]:
        pair = tuple(rng.choice([*common, *list(known)[256:]]) for _ in range(2))
        if "".join(pair) not in known:
            merges.append(pair)
            known["".join(pair)] = len(known)
    return known, merges


def template(case: Case) -> str:
    return TEMPLATES[case["template"] % len(TEMPLATES)]


def write_prompt_files(folder: Path, case: Case, special=SPECIAL) -> dict[str, int]:
    """Qwen2's tokenizer, the chat template and the image settings; returns the special tokens' ids."""
    known, merges = vocabulary(case)
    ids = {content: len(known) + i for i, content in enumerate(special)}
    added = {str(id): {"content": content, "special": True} for content, id in ids.items()}
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "vocab.json").write_text(json.dumps(known), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    write(folder / "tokenizer_config.json", {**settings, "added_tokens_decoder": added})
    (folder / "chat_template.jinja").write_text(template(case), encoding="utf-8")
    whole = {"processor_class": "LlavaProcessor", "patch_size": patch_size(case), "image_token": "<image>"}
    whole |= {"vision_feature_select_strategy": "full", "num_additional_image_tokens": 0}
    found = {"image_processor_type": "CLIPImageProcessor", **image_settings(case)}
    llava = "<image>" not in special
    if llava and not (case["settings"] or case["odd settings"]):
        return ids  # Apple's checkpoints have neither file
    if case["settings' place"] == "processor_config.json":
        whole["image_processor"] = found
    else:
        write(folder / "preprocessor_config.json", found)
    if not llava or "image_processor" in whole:
        write(folder / "processor_config.json", whole)
    return ids


def write_checkpoint(folder: Path, described: dict, made: dict):
    write(folder / "config.json", described)
    save_file(made, folder / "model.safetensors")


def write(file: Path, values: dict):
    file.write_text(json.dumps(values), encoding="utf-8")
