"""What configs in the wild say in other words, and what no FastVLM can be: one line each."""

import copy

import pytest

from mlx_fastvlm import FastVlmConfig, TextConfig, load
from tests.support import checkpoints, small


def text(**changes):
    """The decoder's config of a transformers config with this ``text_config``."""
    return FastVlmConfig.from_dict({**small.transformers_config(), "text_config": changes}).text_config


def tower(**args):
    """The tower's config of a transformers config with these ``model_args``."""
    config = {"model_type": "fast_vlm", "vision_config": {"architecture": "fastvit_mci3", "model_args": args}}
    return FastVlmConfig.from_dict(config).vision_config


def test_keys_that_are_left_out_are_qwen2s():
    """transformers' Qwen2Config of the recorded version; a config without any decoder is FastVLM-7B's."""
    assert text() == TextConfig(4096, 22016, 32, 32, 32, 151936)
    assert text(hidden_size=64, num_attention_heads=4, num_key_value_heads=None).num_key_value_heads == 4
    assert FastVlmConfig.from_dict({"model_type": "fast_vlm", "text_config": None}).text_config == TextConfig()


def test_nested_rope_parameters_win():
    assert text(rope_theta=500.0, rope_parameters={"rope_theta": 1e6}).rope_theta == 1e6
    assert text(rope_theta=500.0, rope_parameters={"rope_type": "default"}).rope_theta == 500
    nested = {**checkpoints.apple_config(), "rope_parameters": {"rope_theta": 7.0}}
    assert FastVlmConfig.from_dict(nested).text_config.rope_theta == 7


@pytest.mark.parametrize(
    ("said", "meant"), [("pad", "pad"), (None, "crop"), ("square", "crop"), ("left out", "crop"), ("crop", "crop")]
)
def test_apples_aspect_ratios(said, meant):
    """LLaVA's ``process_images`` pads for "pad" alone."""
    config = {**checkpoints.apple_config(), "image_aspect_ratio": said}
    if said == "left out":
        del config["image_aspect_ratio"]
    assert FastVlmConfig.from_dict(config).image_aspect_ratio == meant


def test_silus_other_name():
    assert text(hidden_act="swish").hidden_act == "swish"


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gemma2"])
def test_another_decoder_is_no_fault_of_the_download(kind):
    with pytest.raises(ValueError, match=f"model_type '{kind}' is not supported") as raised:
        text(model_type=kind)
    assert "download" not in str(raised.value).lower()


def test_towers_without_position_convolutions():
    """``pos_embs`` of nulls is the only form that JSON can hold, and what is written back."""
    none = tower(**small.VISION, pos_embs=[None] * 5)
    assert none.pos_embs_shapes == [None] * 5
    assert none.model_args() == {**small.VISION, "pos_embs": [None] * 5}
    config = FastVlmConfig(vision_config=none)
    assert config.to_dict()["vision_config"]["model_args"]["pos_embs"] == [None] * 5
    assert FastVlmConfig.from_dict(config.to_dict()).vision_config == none


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_towers_of_fewer_stages_take_timms_lists_from_the_front(stages):
    shape = {"layers": [1, 2, 1, 1][:stages], "embed_dims": [32, 64, 128, 256][:stages]}
    config = tower(**shape)
    assert config.mlp_ratios == [4] * stages
    assert config.token_mixers == ["repmixer", "repmixer", "repmixer", "attention"][:stages]
    assert config.pos_embs_shapes == [None, None, None, [7, 7]][:stages]
    assert config.model_args() == shape


def test_transformers_own_test_config_loads():
    """As its FastVLM tests make it, with silu."""
    args = {
        "embed_dims": [16, 32],
        "layers": [2, 2],
        "mlp_ratios": [4, 4],
        "pos_embs": [None, None],
        "token_mixers": ["repmixer", "attention"],
        "downsamples": [False, True],
        "se_downsamples": [False, False],
    }
    config = tower(**args)
    assert (config.hidden_size, config.patch_size) == (64, 8)


FULL, SLIDING = "full_attention", "sliding_attention"
# What Qwen2Config of transformers 5.23 makes of these, with three layers.
WINDOWS = [
    ({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, [None, 4, 4]),
    ({"use_sliding_window": True, "max_window_layers": -1}, [4096] * 3),
    ({"use_sliding_window": True, "sliding_window": 5, "layer_types": [FULL, SLIDING, FULL]}, [None, 5, None]),
    ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, [None] * 3),
    ({"sliding_window": 4, "max_window_layers": 0}, [None] * 3),
    ({"layer_types": [FULL] * 3}, [None] * 3),
]


@pytest.mark.parametrize(("keys", "windows"), WINDOWS)
@pytest.mark.parametrize("layout", ["transformers", "apple"])
def test_sliding_windows(keys, windows, layout):
    apple = {**checkpoints.apple_config(), **keys}
    theirs = {**small.transformers_config(), "text_config": {**small.TEXT, **keys}}
    config = FastVlmConfig.from_dict(apple if layout == "apple" else theirs)
    assert config.text_config.windows == windows
    assert FastVlmConfig.from_dict(config.to_dict()).text_config == config.text_config


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"layer_types": [SLIDING] * 3}, "but no window; set use_sliding_window"),
        ({"layer_types": [SLIDING] * 3, "use_sliding_window": True, "sliding_window": None}, "but no window"),
        ({"layer_types": [FULL] * 2}, "2 entries for 3 layers"),
        ({"layer_types": ["chunked_attention"] * 3}, "layer_types must be a list of"),
        ({"layer_types": "full_attention"}, "layer_types must be a list of"),
        ({"use_sliding_window": True, "sliding_window": 0, "max_window_layers": 0}, "sliding_window must be"),
        ({"use_sliding_window": True, "sliding_window": "4", "max_window_layers": 0}, "sliding_window must be"),
        ({"use_sliding_window": True, "max_window_layers": "a"}, "max_window_layers must be"),
    ],
)
def test_windows_that_can_not_be(keys, told):
    with pytest.raises(ValueError, match=told):
        FastVlmConfig.from_dict({**small.transformers_config(), "text_config": {**small.TEXT, **keys}})


def test_windows_that_no_layer_has():
    """As Qwen2Config decides: from ``max_window_layers`` on, and only with a size."""
    plain = text(num_hidden_layers=4)
    assert text(num_hidden_layers=4, use_sliding_window=True, max_window_layers=4) == plain
    assert text(num_hidden_layers=4, use_sliding_window=True, max_window_layers=0, sliding_window=None) == plain
    assert text(num_hidden_layers=4, use_sliding_window=False, max_window_layers=0) == plain


@pytest.mark.parametrize(
    ("halves", "layout"), [([True, True, True, True, True], "timm"), ([False, True, False, True, True], "apple")]
)
def test_halving_without_doubling_is_refused(halves, layout):
    """timm's list says what a stage begins with, Apple's what it ends with."""
    shape = {"layers": [1] * 5, "embed_dims": [32, 64, 64, 64, 128]}
    apple = {"model_type": "llava_qwen2", "vision_config": {**shape, "downsamples": halves}}
    timm = {"model_type": "fast_vlm", "vision_config": {"model_args": {**shape, "downsamples": halves}}}
    with pytest.raises(ValueError, match="downsamples asks to halve"):
        FastVlmConfig.from_dict(apple if layout == "apple" else timm)


DEGENERATE = {
    "no perceptron": ({"mlp_ratios": [0.001] * 5}, "embed_dims x mlp_ratios must be"),
    "a huge perceptron": ({"mlp_ratios": [1e8] * 5}, "embed_dims x mlp_ratios must be"),
    "narrow": ({"embed_dims": [1] * 5, "token_mixers": ["repmixer"] * 5}, "must be at least 16"),
    "even mixers": ({"repmixer_kernel_size": 4}, "must be an odd number"),
    "even downsampling": ({"down_patch_size": 8}, "must be an odd number"),
    "downsampling of single pixels": ({"down_patch_size": 1}, "odd number of pixels from 3"),
    "even positions": ({"pos_embs_shapes": [None] * 4 + [[6, 6]]}, "must be an odd number"),
    "positions of two sides": ({"pos_embs_shapes": [None] * 4 + [[7, 3]]}, "must hold equal pairs"),
    "deep": ({"layers": [1000] * 5}, "at most 1000 layers"),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_towers(case):
    changes, message = DEGENERATE[case]
    config = copy.deepcopy(checkpoints.apple_config())
    config["vision_config"] |= changes
    with pytest.raises(ValueError, match=message):
        FastVlmConfig.from_dict(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 1024, "num_key_value_heads": 2}, "1024 attention heads can't divide"),
        ({"head_dim": 2**20, "num_attention_heads": 4096, "num_key_value_heads": 1}, "x head_dim must be"),
        ({"head_dim": 7}, "head_dim must be an even number"),
        ({"hidden_size": 60}, "head_dim must be an even number"),
    ],
)
def test_degenerate_heads(changes, message):
    with pytest.raises(ValueError, match=message):
        FastVlmConfig.from_dict({**checkpoints.apple_config(), **changes})


@pytest.mark.parametrize("token", [258, 257, 97])
def test_an_image_token_that_texts_have(checkpoint, tmp_path, token):
    """What ends a turn, what the template writes, and a plain letter."""
    folder = checkpoints.write(tmp_path, config_dict={**checkpoints.apple_config(), "image_token_index": token})
    with pytest.raises(ValueError, match=f"{token} stands for an image, but"):
        load(folder)
