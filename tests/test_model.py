"""The model's own promises beyond parity."""

import mlx.core as mx
import pytest

import small
from mlx_fastvlm import FastViTHD, VisionConfig
from mlx_fastvlm.config import FastVlmConfig


def pixels(count, height=128, width=192):
    return mx.random.uniform(shape=(count, height, width, 3))


def test_exactly_one_of_ids_and_embeddings(small_model):
    model, _ = small_model
    ids = mx.array([[1, 2, 3]])
    for arguments in ({}, {"input_ids": ids, "inputs_embeds": model.get_input_embeddings()(ids)}):
        with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
            model(**arguments)
    by_embeddings = model(inputs_embeds=model.get_input_embeddings()(ids)).logits
    assert mx.array_equal(by_embeddings, model(ids).logits)


@pytest.mark.parametrize("count", [0, 5, 7])
def test_placeholders_must_match_the_features(small_model, count):
    model, _ = small_model
    with pytest.raises(ValueError, match=f"tokens: {count}, features: 6"):
        model(mx.array([[1, *[-200] * count, 2]]), pixels(1))


def test_placeholders_are_found_in_embeddings(checkpoint):
    from mlx_fastvlm import load

    model, _ = load(checkpoint("transformers"))
    ids = mx.array([[1, *[small.IMAGE_TOKEN] * 6, 2]])
    embeddings = model.get_input_embeddings()(ids)
    picture = pixels(1)
    assert mx.array_equal(model(inputs_embeds=embeddings, pixel_values=picture).logits, model(ids, picture).logits)
    features = model.get_image_features(picture)
    assert model.get_placeholder_mask(None, embeddings, features).tolist() == [[False, *[True] * 6, False]]


def test_a_placeholder_without_an_embedding_is_not_searched(small_model):
    model, _ = small_model
    with pytest.raises(ValueError, match="pass input_ids"):
        model(inputs_embeds=mx.zeros((1, 8, 64)), pixel_values=pixels(1))


def test_a_placeholders_id_is_never_looked_up(checkpoint, small_model):
    """-200 has no embedding, 300 has one; what stands there must not matter."""
    from mlx_fastvlm import load

    picture = pixels(1)
    logits = []
    for model, id in ((small_model[0], -200), (load(checkpoint("transformers"))[0], small.IMAGE_TOKEN)):
        logits.append(model(mx.array([[1, *[id] * 6, 2]]), picture).logits)
    assert mx.array_equal(*logits)


def test_logits_to_keep(small_model):
    model, _ = small_model
    ids = mx.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    whole = model(ids).logits
    assert mx.allclose(model(ids, logits_to_keep=2).logits, whole[:, -2:], atol=1e-5)
    assert mx.allclose(model(ids, logits_to_keep=mx.array([0, 3])).logits, whole[:, mx.array([0, 3])], atol=1e-5)


def test_unsupported_arguments_are_refused(small_model):
    model, _ = small_model
    with pytest.raises(ValueError, match="vision_feature_layer -2"):
        model.get_image_features(pixels(1), vision_feature_layer=-2)
    with pytest.raises(ValueError, match="'default' is not supported"):
        model(mx.array([[-200] * 6]), pixels(1), vision_feature_select_strategy="default")
    with pytest.raises(ValueError, match="attention_mask must have shape"):
        model(mx.array([[1, 2]]), attention_mask=mx.ones((1, 3)))
    with pytest.raises(ValueError, match="labels"):
        model(mx.array([[1, 2]]), labels=mx.array([[1, 2, 3]]))


@pytest.mark.parametrize("shape", [(128, 192, 3), (1, 128, 192, 1), (1, 3, 128, 192), (1, 100, 128, 3), (1, 0, 64, 3)])
def test_bad_pixel_shapes(small_model, shape):
    with pytest.raises(ValueError, match="pixel_values"):
        small_model[0].vision_tower(mx.zeros(shape))


def test_pictures_in_a_batch_do_not_mix(small_model):
    tower = small_model[0].vision_tower
    pictures = pixels(3)
    together = tower(pictures).last_hidden_state
    for i in range(3):
        assert mx.allclose(tower(pictures[i : i + 1]).last_hidden_state[0], together[i], atol=1e-4)


def test_any_sides_that_are_multiples_of_64(small_model):
    tower = small_model[0].vision_tower
    out = tower(pixels(1, 64, 320), output_hidden_states=True)
    assert out.last_hidden_state.shape == (1, 1, 5, 512)
    assert out.pooler_output.shape == (1, 512)
    assert [x.shape[1:3] for x in out.hidden_states] == [(16, 80), (8, 40), (4, 20), (2, 10), (1, 5)]
    assert tower(pixels(1)).hidden_states is None


@pytest.mark.parametrize(
    "vision",
    [
        {"layers": [1, 1, 1, 1]},
        {"embed_dims": [16, 40, 80, 160, 320]},
        {"embed_dims": [8, 16, 32, 40, 80]},
        {"token_mixers": ["pool"] * 5},
        {"image_size": 1000},
        {"cls_ratio": 3},
        {"architecture": "resnet50"},
    ],
)
def test_impossible_towers_are_refused(vision):
    with pytest.raises(ValueError, match=r"vision|image_size"):
        FastVlmConfig.from_dict({"model_type": "fast_vlm", "vision_config": vision})


@pytest.mark.parametrize(
    "change",
    [
        {"vision_feature_select_strategy": "default"},
        {"vision_feature_layer": -2},
        {"image_aspect_ratio": "anyres"},
        {"model_type": "llava"},
        {"text_config": {"hidden_act": "relu"}},
        {"text_config": {"num_attention_heads": 5, "num_key_value_heads": 2}},
        {"text_config": {"rope_scaling": {"rope_type": "yarn"}}},
    ],
)
def test_unsupported_configurations_are_refused(change):
    with pytest.raises(ValueError, match=r"not|can't"):
        FastVlmConfig.from_dict({"model_type": "fast_vlm", **change})


def test_an_unknown_projector_is_refused():
    from mlx_fastvlm import FastVlmForConditionalGeneration

    with pytest.raises(ValueError, match="mm_projector_type 'linear'"):
        FastVlmConfig.from_dict({"model_type": "llava_qwen2", "mm_projector_type": "linear"})
    with pytest.raises(ValueError, match="projector_hidden_act"):
        FastVlmForConditionalGeneration(FastVlmConfig(projector_hidden_act="sine"))


def test_released_configurations(facts):
    configs = facts / "configs"
    small_one, large = (FastVlmConfig.from_file(configs / f"apple-{size}.config.json") for size in ("0.5b", "7b"))
    assert small_one.num_image_tokens == large.num_image_tokens == 256
    assert small_one.vision_config == large.vision_config == VisionConfig()
    assert (small_one.text_config.hidden_size, large.text_config.hidden_size) == (896, 3584)
    assert small_one.image_aspect_ratio == "pad"
    assert small_one.eos_token_id == [151645]
    assert small_one.tie_word_embeddings
    assert not large.tie_word_embeddings
    assert FastViTHD(VisionConfig(image_size=64)).dtype == mx.float32
