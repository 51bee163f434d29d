"""What transformers' own tests ask of its fast_vlm, asked of this one, in their small configuration.

docs/transformers_tests.md says of each of theirs which of these it is, or why it has no meaning here. The numbers are
other tests' business (docs/reference.md); these are about behaviour. Generation is in test_transformers_generation.py.
"""

import copy
import dataclasses
import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.optimizers import Adam
from mlx.utils import tree_flatten, tree_map

from mlx_fastvlm import FastVlmConfig, FastVlmForConditionalGeneration, FastVlmModel
from mlx_fastvlm.config import TextConfig, VisionConfig
from tests.support.transformers_small import (
    CLASSES,
    IMAGE,
    IMAGE_TOKENS,
    LENGTH,
    ROWS,
    TEXT,
    VISION,
    config,
    example,
    first,
    made,
    same,
)


@pytest.fixture(scope="module")
def model():
    return made()


@pytest.fixture(scope="module")
def inputs():
    return example()


@pytest.fixture(params=CLASSES, ids=lambda cls: cls.__name__)
def either(request):
    return made(request.param)


# Configuration: test_config


def test_config_common_properties():
    made_of_nothing = FastVlmConfig()
    assert made_of_nothing.image_token_id == made_of_nothing.image_token_index
    assert made_of_nothing.get_text_config() is made_of_nothing.text_config
    assert json.loads(made_of_nothing.to_json_string()) == json.loads(json.dumps(made_of_nothing.to_dict()))


def test_config_of_python_objects_is_that_of_json():
    written = json.loads(json.dumps({"model_type": "fast_vlm", "vision_config": VISION, "text_config": TEXT}))
    read = FastVlmConfig.from_dict({**written, "image_token_id": IMAGE, "ignore_index": -100})
    assert (read.vision_config, read.text_config) == (config().vision_config, config().text_config)
    assert type(config().vision_config.layers) is list


@pytest.mark.filterwarnings("error")
def test_config_says_nothing_of_keys_that_change_nothing():
    config()
    FastVlmConfig()


def test_config_from_and_save_pretrained(tmp_path):
    config().save_pretrained(tmp_path / "sub")
    assert FastVlmConfig.from_pretrained(tmp_path / "sub").to_dict() == config().to_dict()
    with pytest.raises(OSError, match="nowhere"):
        FastVlmConfig.from_pretrained(tmp_path / "nowhere")


def test_config_parts_and_changes():
    whole = config()
    assert (type(whole.text_config), type(whole.vision_config)) == (TextConfig, VisionConfig)
    smaller = dataclasses.replace(whole, text_config=dataclasses.replace(whole.text_config, vocab_size=20))
    assert smaller.text_config.to_dict() == {**whole.text_config.to_dict(), "vocab_size": 20}


# The file's own tests


def test_mismatching_num_image_tokens(either, inputs):
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    either(**inputs)
    with pytest.raises(ValueError, match="image tokens"):
        either(**{**inputs, "pixel_values": pixels[-2:]})
    twice = mx.concatenate([pixels[:1], pixels[:1]])
    with pytest.raises(ValueError, match="image tokens"):
        either(ids[:1], twice)
    either(mx.concatenate([ids[:1], ids[:1]]), twice)


def test_generation_no_images(model):
    assert model.generate(mx.array([[5, 9, 12]]), max_new_tokens=20).shape == (1, 23)


# Saving and loading


def test_save_load(either, inputs, tmp_path):
    before, cls = first(either(**inputs)), type(either)
    either.save_pretrained(tmp_path / "one")
    again = cls.from_pretrained(tmp_path / "one", dtype="float32")
    assert same(first(again(**inputs)), before)
    again.save_pretrained(tmp_path / "two")
    assert same(first(cls.from_pretrained(tmp_path / "two", dtype="float32")(**inputs)), before)


@pytest.mark.parametrize("layout", ["mlx", "transformers"])
def test_base_model_loads_from_the_whole_and_not_the_other_way(model, inputs, tmp_path, layout):
    model.save_pretrained(tmp_path / "whole", layout=layout)
    part = FastVlmModel.from_pretrained(tmp_path / "whole", dtype="float32")
    assert same(first(part(**inputs)), first(model.model(**inputs)))
    part.save_pretrained(tmp_path / "part", layout=layout)
    assert json.loads((tmp_path / "part" / "config.json").read_text())["architectures"] == ["FastVlmModel"]
    assert same(
        first(FastVlmModel.from_pretrained(tmp_path / "part", dtype="float32")(**inputs)), first(part(**inputs))
    )
    with pytest.raises(ValueError, match="without the head"):
        FastVlmForConditionalGeneration.from_pretrained(tmp_path / "part")


def test_tied_weights_are_saved_once(inputs, tmp_path):
    tied = made(tie_word_embeddings=True)
    assert not [name for name, _ in tree_flatten(tied.parameters()) if "lm_head" in name]
    tied.model.save_pretrained(tmp_path / "part")
    whole = FastVlmForConditionalGeneration.from_pretrained(tmp_path / "part", dtype="float32")
    assert same(first(whole(**inputs)), first(tied(**inputs)))
    tied.set_input_embeddings(nn.Embedding(99, 32))
    assert tied.get_output_embeddings() is tied.get_input_embeddings()


def test_load_with_mismatched_shapes(model, tmp_path):
    model.save_pretrained(tmp_path / "x")
    file = tmp_path / "x" / "config.json"
    written = json.loads(file.read_text())
    written["text_config"]["vocab_size"] = 10
    file.write_text(json.dumps(written))
    with pytest.raises(ValueError, match="embed_tokens"):
        FastVlmForConditionalGeneration.from_pretrained(tmp_path / "x")


def test_copies_are_models_of_their_own(either, inputs):
    before, copied = first(either(**inputs)), copy.deepcopy(either)
    copied.update(tree_map(mx.zeros_like, copied.parameters()))
    assert np.array_equal(first(either(**inputs)), before)


# Forward


def test_determinism(either, inputs):
    assert np.array_equal(first(either(**inputs)), first(either(**inputs)))


def test_batching_equivalence(either, inputs):
    whole, alone = (
        either(**batch, output_hidden_states=True)
        for batch in (inputs, {name: value[:1] for name, value in inputs.items()})
    )
    assert same(first(whole)[:1], first(alone))
    assert same(whole.image_hidden_states[:1], alone.image_hidden_states)
    assert all(same(a[:1], b) for a, b in zip(whole.hidden_states, alone.hidden_states))


def test_attention_and_hidden_states_outputs(either, inputs):
    out = either(**inputs, output_attentions=True, output_hidden_states=True)
    assert [x.shape for x in out.attentions] == [(ROWS, 4, LENGTH, LENGTH)] * 2
    assert [x.shape for x in out.hidden_states] == [(ROWS, LENGTH, 32)] * 3
    assert same(sum(x.sum(axis=-1) for x in out.attentions), np.full((ROWS, 4, LENGTH), 2))
    plain = either(**inputs)
    assert plain.attentions is plain.hidden_states is None


def test_can_capture_specific_layers_hidden_states(either, inputs):
    every = either(**inputs, output_hidden_states=True).hidden_states
    some = either(**inputs, output_hidden_states=[1]).hidden_states
    assert some[0] is some[2] is None
    assert np.array_equal(some[1], every[1])


def test_get_image_features_output(either, inputs):
    features = either.get_image_features(inputs["pixel_values"])
    assert features.shape == (ROWS, IMAGE_TOKENS, 32)
    assert np.array_equal(features, either(**inputs).image_hidden_states)
    encoded = either.vision_tower(inputs["pixel_values"], output_hidden_states=True)
    assert len(encoded.hidden_states) == 2


def test_retain_grad_hidden_states_attentions(either, inputs):
    """The gradient reaches both; MLX has it of what a function is given, so of the embeddings."""
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    embeds = either.embed(ids, either.get_image_features(pixels))

    def summed(embeds, name):
        out = either(inputs_embeds=embeds, output_hidden_states=True, output_attentions=True)
        return sum((x**2).sum() for x in getattr(out, name))

    for name in ("hidden_states", "attentions"):
        assert mx.abs(mx.grad(summed)(embeds, name)).max() > 0


def test_inputs_embeds_matches_input_ids(either, inputs):
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    embeds = either.get_input_embeddings()(ids)
    assert same(first(either(inputs_embeds=embeds, pixel_values=pixels)), first(either(ids, pixels)))
    for bad in ({"input_ids": ids, "inputs_embeds": embeds}, {}):
        with pytest.raises(ValueError, match="exactly one"):
            either(**bad)


def test_eager_matches_sdpa_inference(either, inputs):
    """With padding on either side, in each of three types."""
    mask = np.ones((ROWS, LENGTH))
    mask[0, -2:] = mask[1, :2] = 0
    mask = mx.array(mask)
    rows = {**inputs, "attention_mask": mask}
    tail = dict(
        inputs, input_ids=mx.concatenate([inputs["input_ids"][:, IMAGE_TOKENS:], inputs["input_ids"][:, :4]], 1)
    )
    for dtype, atol in ((mx.float32, 1e-4), (mx.bfloat16, 0.1), (mx.float16, 0.02)):
        either.language_model.set_dtype(dtype)
        for batch in (rows, {**tail, "attention_mask": mask}):
            found = {}
            for implementation in ("sdpa", "eager"):
                either.set_attn_implementation(implementation)
                found[implementation] = first(either(**batch))
            kept = np.array(mask, bool)
            assert same(found["sdpa"][kept], found["eager"][kept], atol)


def test_can_set_attention_dynamically(either):
    for implementation in ("eager", "sdpa", "eager"):
        either.set_attn_implementation(implementation)
        assert either.language_model.attn_implementation == implementation
    with pytest.raises(ValueError, match="'foo'"):
        either.set_attn_implementation("foo")
    assert either.language_model.attn_implementation == "eager"


def test_sliding_window_mask(inputs):
    """Nothing passes a window of three, and something does without one."""
    for text, seen in (({"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}, False), ({}, True)):
        weights = made(text=text)(**inputs, output_attentions=True).attentions
        query, key = np.mgrid[:LENGTH, :LENGTH]
        assert all(bool(np.array(x)[..., query - key >= 3].any()) == seen for x in weights)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_model_rope_scaling_from_config(kind):
    short, long = (mx.array(np.random.RandomState(1).randint(2, 99, (1, length))) for length in (10, 24))
    rope = {"rope_type": kind, "factor": 10.0, "rope_theta": 10000.0}
    how = {"max_position_embeddings": 16}
    plain, scaled = made(text=how), made(text={**how, "rope_parameters": rope})
    assert same(first(plain(short)), first(scaled(short))) == (kind == "dynamic")
    assert not same(first(plain(long)), first(scaled(long)))


def test_model_rope_with_partial_rotation():
    with pytest.raises(ValueError, match="all of a head is rotated"):
        config(text={"partial_rotary_factor": 0.5})


# Vocabulary


def test_resize_tokens_embeddings(either, inputs):
    before = first(either(**inputs))
    rows = np.array(either.get_input_embeddings().weight)
    assert either.resize_token_embeddings(109).weight.shape == (109, 32)
    assert either.config.text_config.vocab_size == 109
    assert np.array_equal(either.get_input_embeddings().weight[:99], rows)
    either(**inputs)
    either.resize_token_embeddings(99)
    assert same(first(either(**inputs)), before)
    assert either.resize_token_embeddings(pad_to_multiple_of=64).weight.shape == (128, 32)
    assert either.resize_token_embeddings(90, pad_to_multiple_of=1).weight.shape == (90, 32)
    with pytest.raises(ValueError, match="pad_to_multiple_of"):
        either.resize_token_embeddings(90, pad_to_multiple_of=1.3)


def test_resize_embeddings_untied(model, inputs):
    resized = copy.deepcopy(model)
    resized.resize_token_embeddings(109)
    assert resized.get_output_embeddings().weight.shape == (109, 32)
    assert same(resized(**inputs).logits[..., :99], model(**inputs).logits)
    assert resized(**inputs).logits.shape[-1] == 109


def test_model_get_set_embeddings(either):
    assert isinstance(either.get_input_embeddings(), nn.Embedding)
    new = nn.Embedding(10, 32)
    either.set_input_embeddings(new)
    assert either.get_input_embeddings() is new


# Training


def labelled(inputs):
    ids = inputs["input_ids"]
    return {**inputs, "labels": mx.where(ids == IMAGE, -100, ids)}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training(inputs, checkpointing):
    """Every parameter has a gradient, and the loss falls to nearly nothing (their training mixin's overfitting)."""
    model, batch = made().train(), labelled(inputs)
    if checkpointing:
        model.gradient_checkpointing_enable()
    both = nn.value_and_grad(model, lambda batch: model(**batch).loss)
    begin, gradients = both(batch)
    still = [name for name, x in tree_flatten(gradients) if not mx.abs(x).max() > 0]
    assert still in ([], ["language_model.embed_tokens.weight"])
    if checkpointing:
        return
    optimizer = Adam(2e-2)
    for _ in range(40):
        optimizer.update(model, both(batch)[1])
    assert both(batch)[0] < 0.2 * begin


def test_gradient_checkpointing_enable_disable(either):
    assert not either.is_gradient_checkpointing
    either.gradient_checkpointing_enable()
    assert either.is_gradient_checkpointing
    assert either.vision_tower.gradient_checkpointing
    either.gradient_checkpointing_disable()
    assert not either.is_gradient_checkpointing
    assert not either.vision_tower.gradient_checkpointing


def test_causal_lm_loss_honors_shift_labels(model, inputs):
    batch = labelled(inputs)
    labels = batch.pop("labels")
    shifted = mx.concatenate([labels[:, 1:], mx.full((ROWS, 1), -100)], axis=1)
    usual = model(**batch, labels=labels).loss
    assert same(model(**batch, labels=labels, shift_labels=shifted).loss, usual)
    assert same(model(**batch, labels=mx.zeros_like(labels), shift_labels=shifted).loss, usual)
    assert not same(model(**batch, labels=labels, shift_labels=(shifted + 1) % 99).loss, usual, 1e-3)
    with pytest.raises(ValueError, match="shift_labels must have"):
        model(**batch, labels=labels, shift_labels=shifted[:, 1:])
