"""The table of keys is true: what is honoured changes something, what is harmless nothing, the rest is told."""

import copy
import dataclasses
import json
import shutil
import warnings

import pytest

from mlx_fastvlm import FastVlmConfig, FastVlmProcessor
from mlx_fastvlm.config.keys import TABLE, check_keys
from tests.support import checkpoints, small

APPLE = checkpoints.apple_config()
THEIRS = {key: value for key, value in small.transformers_config().items() if key != "tie_word_embeddings"}

# Each place of a config: a good one, and where in it the place is.
PLACES = {
    "config.json": (APPLE, ()),
    "text_config": (THEIRS, ("text_config",)),
    "rope_parameters": (THEIRS, ("text_config", "rope_parameters")),
    "vision_config": (APPLE, ("vision_config",)),
    "model_args": (THEIRS, ("vision_config", "model_args")),
}
FIVE = [1, 2, 1, 2, 1]
# Another value of each honoured key, with others that have to be there for it to matter.
TOWER = {
    "se_downsamples": {"se_downsamples": [False, True, False, False, False]},
    "layers": {"layers": [1, 1, 1, 1, 1]},
    "embed_dims": {"embed_dims": [32, 64, 128, 256, 512]},
    "mlp_ratios": {"mlp_ratios": [2, 2, 2, 2, 2]},
    "token_mixers": {"token_mixers": ["repmixer"] * 5},
    "pos_embs_shapes": {"pos_embs_shapes": [None] * 5},
    "repmixer_kernel_size": {"repmixer_kernel_size": 5},
    "down_patch_size": {"down_patch_size": 5},
    "down_stride": {"down_stride": 4},
    "cls_ratio": {"cls_ratio": 1},
    "lkc_use_act": {"lkc_use_act": False},
    "downsamples": {"downsamples": [True] * 5, "embed_dims": [32, 32, 64, 128, 256]},
}
TEXT = {
    "hidden_act": {"hidden_act": "gelu"},
    "hidden_size": {"hidden_size": 128},
    "intermediate_size": {"intermediate_size": 32},
    "num_hidden_layers": {"num_hidden_layers": 2},
    "num_attention_heads": {"num_attention_heads": 8},
    "num_key_value_heads": {"num_key_value_heads": None},
    "vocab_size": {"vocab_size": 400},
    "head_dim": {"head_dim": 32},
    "rms_norm_eps": {"rms_norm_eps": 1e-5},
    "rope_theta": {"rope_theta": 500.0},
    "rope_scaling": {"rope_scaling": {"type": "linear", "factor": 2}},
    "rope_parameters": {"rope_parameters": {"rope_theta": 500.0}},
    "max_position_embeddings": {"max_position_embeddings": 64},
    "sliding_window": {"sliding_window": None, "use_sliding_window": True, "max_window_layers": 0},
    "max_window_layers": {"max_window_layers": 0, "use_sliding_window": True},
    "use_sliding_window": {"use_sliding_window": True, "max_window_layers": 1},
    "layer_types": {"layer_types": [*["full_attention"] * 2, "sliding_attention"], "use_sliding_window": True},
    "eos_token_id": {"eos_token_id": 7},
    "tie_word_embeddings": {"tie_word_embeddings": False},
}
LLAMA3 = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CHANGES = {
    "text_config": TEXT,
    "rope_parameters": {
        "rope_type": {"rope_type": "yarn"},
        "type": {"type": "dynamic"},
        "rope_theta": {"rope_theta": 500.0},
        "factor": {"rope_type": "linear", "factor": 2.0},
        "low_freq_factor": LLAMA3 | {"low_freq_factor": 2.0},
        "high_freq_factor": LLAMA3 | {"high_freq_factor": 8.0},
        **{
            name: {"rope_type": "yarn", name: value}
            for name, value in {
                "original_max_position_embeddings": 100,
                "attention_factor": 1.5,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "mscale": 2.0,
                "mscale_all_dim": 2.0,
                "truncate": False,
            }.items()
        },
    },
    "vision_config": {
        **TOWER,
        "architecture": {"architecture": "fastvit_t8"},
        "image_size": {"image_size": 256},
        "hidden_size": {"hidden_size": 100, "architecture": "fastvit_mci3"},
        "model_args": {"model_args": {"layers": [1] * 5}},
    },
    "model_args": TOWER,
    "config.json": {
        **TEXT,
        "model_type": {"model_type": "llama"},
        "vision_config": {"vision_config": {**small.VISION, "image_size": 256}},
        "text_config": {"text_config": {"vocab_size": 400}},
        "image_token_id": {"image_token_id": 7},
        "image_token_index": {"image_token_index": 7},
        "mm_projector_type": {"mm_projector_type": "linear"},
        "mm_hidden_size": {"mm_hidden_size": 100},
        "mm_vision_tower": {"mm_vision_tower": "mobileclip_l_256", "vision_config": small.VISION},
        "image_aspect_ratio": {"image_aspect_ratio": "square"},
        "trained_image_sizes": {"trained_image_sizes": [64, 128]},
        "dtype": {"dtype": "float16"},
        "torch_dtype": {"torch_dtype": "float16"},
        "quantization": {"quantization": {"bits": 4, "group_size": 64}},
        # Only in transformers' layout.
        "projector_hidden_act": {"projector_hidden_act": "relu", **THEIRS},
        "vision_feature_select_strategy": {"vision_feature_select_strategy": "default", **THEIRS},
        "vision_feature_layer": {"vision_feature_layer": -2, **THEIRS},
        "multimodal_projector_bias": {"multimodal_projector_bias": False, **THEIRS},
    },
}
# A value of each refused key that asks for what is not done; and one that asks for what is done anyway.
REFUSED = {
    "attention_bias": (False, True),
    "model_type": ("llama", "qwen2"),
    "partial_rotary_factor": (0.5, 1.0),
    "rope_traditional": (True, False),
    "full_attention": ({"rope_theta": 7.0}, None),
    "sliding_attention": ({"rope_theta": 7.0}, None),
    "pos_embs": ([None, None, None, None, "RepConditionalPosEnc"], [None] * 5),
    "fork_feat": (True, False),
    "features_only": (True, False),
    "in_chans": (1, 3),
    "num_channels": (1, 3),
    "ignore_index": (0, -100),
    "act_layer": ("relu", None),
    "norm_layer": ("batchnorm2d", None),
    "mm_use_im_start_end": (True, False),
    "add_prefix_space": (True, False),
}


def rows(fate, places):
    return [(place, name) for place in places for name, key in TABLE[place].items() if key.fate == fate]


def read(place, changes):
    """What a config with these changes at a place is read as: its fields, or its error."""
    base, path = PLACES[place]
    config = copy.deepcopy(base)
    there = config
    for name in path:
        there = there.setdefault(name, {})
    there |= changes
    try:
        return dataclasses.replace(FastVlmConfig.from_dict(config), extra={})
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(("place", "name"), rows("honoured", PLACES))
def test_what_is_honoured_changes_something(place, name):
    changes = CHANGES[place][name]
    others = {key: value for key, value in changes.items() if key != name}
    assert read(place, changes) != read(place, others)


@pytest.mark.parametrize(("place", "name"), rows("harmless", PLACES))
def test_what_is_harmless_changes_nothing(place, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(place, {name: "anything"}) == read(place, {})


@pytest.mark.parametrize(("place", "name"), rows("refused", PLACES))
def test_what_is_not_done_is_refused_by_name(place, name):
    bad, good = REFUSED[name]
    told = read(place, {name: bad})
    assert isinstance(told, str)
    assert f"{place}: {name} " in told
    assert told.count("\n") == 0
    if name not in ("full_attention", "sliding_attention", "pos_embs"):  # no such value
        assert read(place, {name: good}) == read(place, {})


@pytest.mark.parametrize("place", TABLE)
def test_an_unknown_key_is_warned_of(place):
    with pytest.warns(UserWarning, match=rf"{place} has keys that are not known here.*\['made_up'\]"):
        check_keys(place, {"made_up": 1, "_private": 2})


def processor_of(folder, file, changes):
    """What a folder's processor is with these changes to one of its files, or the error."""
    path = folder / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | changes))
    try:
        found = FastVlmProcessor.from_folder(folder, FastVlmConfig.from_file(folder / "config.json"))
    except ValueError as error:
        return str(error)
    state = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
    return {**state, "tokenizer": found.tokenizer.to_str()}


SIDE = {
    ("generation_config.json", "eos_token_id"): {"eos_token_id": 7},
    ("tokenizer_config.json", "eos_token_id"): {"eos_token_id": 7},
    ("tokenizer_config.json", "eos_token"): {"eos_token": "a"},
    ("tokenizer_config.json", "pad_token"): {"pad_token": "a"},
    **{
        ("tokenizer_config.json", name): {name: "a"}
        for name in ("bos_token", "unk_token", "sep_token", "cls_token", "mask_token")
    },
    ("tokenizer_config.json", "chat_template"): {"chat_template": "{{ messages }}"},
    ("tokenizer_config.json", "added_tokens_decoder"): {"added_tokens_decoder": {"256": {"content": "<|x|>"}}},
}


@pytest.mark.parametrize("file", ["generation_config.json", "tokenizer_config.json"])
def test_side_files(checkpoint, tmp_path, file):
    plain = processor_of(shutil.copytree(checkpoint("apple"), tmp_path / "plain"), file, {})
    for name, key in TABLE[file].items():
        folder = shutil.copytree(checkpoint("apple"), tmp_path / name)
        if key.fate == "honoured":
            assert processor_of(folder, file, SIDE[file, name]) != plain, name
        elif key.fate == "refused":
            assert f"{file}: {name} " in processor_of(folder, file, {name: REFUSED[name][0]})
        else:
            assert processor_of(folder, file, {name: "anything"}) == plain, name
        shutil.rmtree(folder)
