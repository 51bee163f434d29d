"""What a case is made of: named choices, each with a default; and how a case that fails is made small.

A case is a plain dict, so that it can be printed, and given back as ``--case``. Every choice stands by itself: whatever
the others are, a value of it can be written down, even if no program then accepts the whole.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Case = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """A default, what else there is, and how often (of 1) it is taken instead."""

    default: Any
    others: Callable[[random.Random], Any]
    share: float

    def draw(self, rng: random.Random) -> Any:
        return self.others(rng) if rng.random() < self.share else self.default


def one_of(default: Any, *others: Any, share: float = 0.5) -> Choice:
    return Choice(default, lambda rng: rng.choice(others), share)


def each(count: int, default: list, *values: Any, share: float = 0.5) -> Choice:
    """A list, every entry drawn by itself."""
    return Choice(default, lambda rng: [rng.choice(values) for _ in range(count)], share)


SEED = Choice(0, lambda rng: rng.randrange(2**31), 1.0)
RARE = 0.03

WEIGHTS = {
    "weights": SEED,
    "layout": one_of("transformers", "apple", "mlx-vlm", "mlx", "there and back", share=0.6),
    "training": one_of(False, True, share=0.25),
    "head": one_of("tied", "own", "tied by text_config", "copy", "own though tied", share=0.6),
}

TOWER = {
    "stages": one_of(5, 4, 3, share=0.2),
    "width": one_of(8, 16, 24, 32),
    "depths": each(5, [1] * 5, 1, 2),
    "doubles": each(4, [True] * 4, True, True, False, share=0.15),
    "mlp_ratios": each(5, [4] * 5, 1, 2, 3, 4, 2.5),
    "attention": one_of("timm's", [4], [2, 3, 4], [], [3], share=0.3),  # stages of it
    "pos_embs": one_of("timm's", "none", share=0.2),
    "repmixer_kernel_size": one_of(3, 5, 7),
    "down_patch_size": one_of(7, 3, 5),
    "cls_ratio": one_of(2.0, 1, 1.0, 2, share=0.4),
    "odd tower": one_of(
        {},
        {"down_stride": 4},
        {"cls_ratio": 1.5},
        {"lkc_use_act": False},
        {"lkc_use_act": True},
        {"stem_use_scale_branch": True},
        {"drop_path_rate": 0.1},
        {"proj_drop_rate": 0.1},
        {"se_downsamples": [False, True, False, False, False]},
        {"se_downsamples": [False, True, True, True, True]},
        {"se_downsamples": [False] * 5},
        {"downsamples": [False, True, True, True, True]},
        {"downsamples": [True, True, True, True, True]},
        {"downsamples": [False] * 5},
        {"layer_scale_init_value": 0.1},
        {"num_classes": 0},
        {"fork_feat": False},
        {"in_chans": 3},
        {"global_pool": "max"},
        {"embed_dims too long": True},
        share=0.12,
    ),
    "architecture": one_of("fastvit_mci3", "fastvit_mci2", "fastvit_mci4", share=RARE / 2),
    "image": one_of(1, 2, 3),  # sides, in patches
}

TEXT = {
    "num_hidden_layers": one_of(2, 1, 3),
    "num_key_value_heads": one_of(2, 1, 3, 4),
    "groups": one_of(2, 1, 3, 4),
    "head_dim": one_of(16, 8, 32, 64, 10, 6),
    "head_dim said": one_of(True, *[False] * 9, None),
    "hidden_size": one_of("heads", 32, 48, 80, 100),
    "intermediate_size": one_of(96, 32, 160, 33),
    "vocabulary": one_of(0, 1, 5, 64),  # beyond the tokenizer's
    "rms_norm_eps": one_of(1e-6, 1e-5, 1e-3, 1e-12, 1.0),
    "rope": one_of("top", "parameters", "both", "none", "scaling"),
    "rope_theta": one_of(1000000.0, 10000.0, 500.0, 10),
    "rope_type": one_of("default", "linear", "dynamic", "yarn", "llama3", "longrope", share=0.3),
    "max_position_embeddings": one_of(512, 300, 32768, share=0.3),
    "hidden_act": one_of("silu", *["swish", "gelu", "relu", "gelu_pytorch_tanh", "relu2"] * 3, "hardswish", share=0.3),
    "odd text": one_of(
        {},
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 28},
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
        {"use_sliding_window": True, "sliding_window": 100000, "max_window_layers": 0},
        {"use_sliding_window": False, "sliding_window": 4},
        {"sliding_window": 4},
        {"layer_types": "full_attention"},
        {"layer_types": "sliding_attention"},
        {"layer_types": "sliding_attention", "use_sliding_window": True, "sliding_window": 4},
        {"attention_dropout": 0.5},
        {"use_cache": False},
        {"num_key_value_heads": None},
        {"num_key_value_heads": "left out"},
        {"rms_norm_eps": "left out"},
        {"partial_rotary_factor": 0.5},
        {"attention_bias": False},
        {"mlp_bias": True},
        {"model_type": "llama"},
        {"model_type": "qwen3"},
        {"hidden_act": "left out"},
        {"initializer_range": 0.5},
        {"pad_token_id": 1},
        {"bos_token_id": 2, "eos_token_id": 3},
        share=0.15,
    ),
}

WHOLE = {
    "projector_hidden_act": one_of(
        "gelu", *["gelu_pytorch_tanh", "relu", "silu", "gelu_new"] * 4, "quick_gelu", "swish", "tanh", share=0.5
    ),
    "multimodal_projector_bias": one_of(True, False, share=0.3),
    "image token's name": one_of("image_token_index", "image_token_id", share=0.2),
    "odd whole": one_of(
        {},
        {"vision_feature_layer": -2},
        {"vision_feature_layer": -1},
        {"vision_feature_select_strategy": "default"},
        {"vision_feature_select_strategy": "full"},
        {"image_seq_length": 7},
        {"dtype": "float32"},
        {"torch_dtype": "float32"},
        {"no_such_key": 3},
        share=0.15,
    ),
}

SQUARE = "square"  # stands for the side that the tower is drawn for

IMAGES = {
    "settings": Choice({}, lambda rng: _some(rng, SETTINGS), 0.5),
    "odd settings": Choice({}, lambda rng: _some(rng, ODD_SETTINGS), RARE),
    "settings' place": one_of("preprocessor_config.json", "processor_config.json", share=0.3),
    "aspect": one_of("pad", "crop", None, "square", share=0.5),  # Apple's files
}
SETTINGS = {
    "size": [
        {"shortest_edge": SQUARE},
        {"shortest_edge": 100},
        {"shortest_edge": 201},
        {"height": 150, "width": 201},
        {"height": SQUARE, "width": SQUARE},
        130,
        [SQUARE, SQUARE],
    ],
    "crop_size": [{"height": SQUARE, "width": SQUARE}, SQUARE],
    "default_to_square": [True, False],
    "resample": [0, 1, 2, 3, 4, 5],
    "do_resize": [False, True],
    "do_center_crop": [False, True],
    "do_rescale": [False, True],
    "rescale_factor": [1 / 127.5, 1 / 255, 0.01],
    "do_normalize": [False, True],
    "image_mean": [[0.5, 0.4, 0.3], [0.0, 0.0, 0.0], None],
    "image_std": [[0.5, 0.25, 0.2], [1.0, 1.0, 1.0], None],
    "do_pad": [True, False],
    "do_convert_rgb": [False, True],
    "image_processor_type": ["CLIPImageProcessor", "CLIPImageProcessorFast"],
}
# Most of them are refused, here or there.
ODD_SETTINGS = {
    "size": [{"longest_edge": 100}, None, 0],
    "crop_size": [{"height": SQUARE, "width": 128}, None],
    "size_divisor": [32],
    "do_center_crop": [False],
    "image_processor_type": ["SiglipImageProcessor"],
    "do_flip_channel_order": [True],
}  # fmt: skip

PROMPT = {
    "tokenizer": SEED,
    "merges": one_of(60, 0, 200),
    "tokenizer's files": one_of("vocab.json", "tokenizer.json", share=0.4),
    "template": one_of(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, share=0.7),  # 10 repeats a question, its images too
    "prompt": SEED,
    "said": one_of("chat", "text", share=0.5),
    "images": one_of(1, 0, 2, 3),
    "rows": one_of(1, 2, share=0.4),
    "padding_side": one_of("left", "right"),
}

CHOICES: dict[str, Choice] = {**WEIGHTS, **TOWER, **TEXT, **WHOLE, **IMAGES, **PROMPT}


def _some(rng: random.Random, settings: dict[str, list]) -> dict[str, Any]:
    names = rng.sample(sorted(settings), rng.choice((1, 1, 2, 3)))
    return {name: rng.choice(settings[name]) for name in names}


def draw(seed: int, number: int) -> Case:
    """The so-and-so-many-th case of a seed; it does not depend on the others."""
    rng = random.Random(f"{seed}/{number}")
    return {name: choice.draw(rng) for name, choice in CHOICES.items()}


def defaults() -> Case:
    return {name: choice.default for name, choice in CHOICES.items()}


def shrunk(case: Case, fails: Callable[[Case], bool]) -> Case:
    """The case with every choice back at its default that the failure does not need.

    Goes over the choices again until none can be taken back any more: one may have needed another.
    """
    case = dict(case)
    while True:
        before = dict(case)
        for name, choice in CHOICES.items():
            if case[name] != choice.default:
                simpler = {**case, name: choice.default}
                if fails(simpler):
                    case = simpler
        if case == before:
            return case


def written(case: Case) -> str:
    """What differs from the defaults, as ``--case`` takes it."""
    return json.dumps({name: value for name, value in case.items() if value != CHOICES[name].default})


def read(text: str) -> Case:
    """``ValueError`` for what :func:`written` does not write."""
    chosen = json.loads(text)
    if not isinstance(chosen, dict) or not chosen.keys() <= CHOICES.keys():
        raise ValueError(f"A case is an object of {', '.join(CHOICES)}.")
    return {**defaults(), **chosen}
