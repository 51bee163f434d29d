"""The model's own promises beyond parity."""

import json

import mlx.core as mx
import mlx.nn as nn
import pytest

import small
from mlx_fastvlm import FastVlmConfig, FastVlmForConditionalGeneration, load


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


def test_an_unknown_projector_is_refused():
    with pytest.raises(ValueError, match="projector_hidden_act"):
        FastVlmForConditionalGeneration(FastVlmConfig(projector_hidden_act="sine"))


def test_an_identity_passes_the_features_on(recorded):
    text = {**small.TEXT, "hidden_size": 512}
    config = FastVlmConfig(small.VISION, text, projector_type="identity")
    model = FastVlmForConditionalGeneration(config)
    assert not model.multi_modal_projector.parameters()
    picture = pixels(1)
    features = model.vision_tower(picture).last_hidden_state
    assert mx.array_equal(model.get_image_features(picture), features.flatten(1, 2))


def test_input_and_output_embeddings(checkpoint):
    model = FastVlmForConditionalGeneration.from_pretrained(checkpoint("apple"))
    ids = mx.array([[1, 2, 3]])
    assert model.get_output_embeddings() is model.get_input_embeddings()  # tied
    logits = model(ids).logits
    model.set_input_embeddings(nn.Embedding(320, 64))
    assert model.get_input_embeddings() is model.get_output_embeddings() is model.language_model.embed_tokens
    assert not mx.allclose(model(ids).logits, logits)
    head = nn.Linear(64, 7, bias=False)
    model.set_output_embeddings(head)
    assert model.get_output_embeddings() is head
    assert model(ids).logits.shape == (1, 3, 7)
    assert not model.config.tie_word_embeddings


def test_resizing_the_vocabulary(checkpoint):
    model = FastVlmForConditionalGeneration.from_pretrained(checkpoint("apple"))
    old = model.get_input_embeddings().weight
    assert model.resize_token_embeddings().weight is old
    assert mx.array_equal(model.resize_token_embeddings(300).weight, old[:300])
    assert model.resize_token_embeddings(pad_to_multiple_of=128).weight.shape == (384, 64)
    assert model(mx.array([[383]])).logits.shape == (1, 1, 384)
    with pytest.raises(ValueError, match="at least 1"):
        model.resize_token_embeddings(0)
    nn.quantize(model, class_predicate=lambda path, _: path.endswith("embed_tokens"))
    with pytest.raises(ValueError, match="quantized"):
        model.resize_token_embeddings(512)


def test_attention_implementation_is_the_decoders(small_model):
    model, _ = small_model
    ids = mx.array([[1, 2, 3]])
    with pytest.raises(ValueError, match="sdpa, eager"):
        model.set_attn_implementation("flash_attention_2")
    assert model(ids).attentions is None
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        attentions = model(ids, output_attentions=True).attentions
        assert [x.shape for x in attentions] == [(1, 4, 3, 3)] * 3
        assert mx.allclose(attentions[0].sum(axis=-1), mx.ones((1, 4, 3)))


def test_features_and_pictures_exclude_each_other(small_model):
    model, _ = small_model
    picture = pixels(1)
    features = {"image": model.get_image_features(picture)}
    with pytest.raises(ValueError, match="both pixel_values and mm_encoder_outputs"):
        model(mx.array([[-200] * 6]), picture, mm_encoder_outputs=features)


def test_prepared_inputs_are_transformers(small_model):
    model, _ = small_model
    ids, mask, positions = (mx.array(x) for x in small.batch())
    recorded = json.loads((small.HERE / "recorded.json").read_text())["generation_steps"]
    steps = {
        "first": {"is_first_iteration": True},
        "later": {"next_sequence_length": 1},
        "later without a cache": {"use_cache": False},
    }
    assert steps.keys() == recorded.keys()
    pictures = mx.array(small.pixels(3))
    for name, step in steps.items():
        inputs = model.prepare_inputs_for_generation(
            ids, attention_mask=mask, pixel_values=pictures, labels=ids, **step
        )
        assert {key: list(value.shape) for key, value in inputs.items()} == recorded[name]
    embeddings = mx.zeros((*ids.shape, 64))
    first = model.prepare_inputs_for_generation(ids, inputs_embeds=embeddings, is_first_iteration=True)
    assert list(first) == ["inputs_embeds"]
    later = model.prepare_inputs_for_generation(
        ids, inputs_embeds=embeddings, next_sequence_length=1, position_ids=positions
    )
    assert {key: value.shape for key, value in later.items()} == {"input_ids": (2, 1), "position_ids": (2, 1)}


def test_float16_weights_run_with_a_bfloat16_tower(checkpoint, small_model):
    half = FastVlmForConditionalGeneration.from_pretrained(checkpoint("apple"), dtype="float16")
    assert half.vision_tower.dtype == half.multi_modal_projector.linear_1.weight.dtype == mx.bfloat16
    assert half.get_input_embeddings().weight.dtype == mx.float16
    ids, picture = mx.array([[1, *[-200] * 6, 2]]), pixels(1)
    out = half(ids, picture)
    assert (out.image_hidden_states.dtype, out.logits.dtype) == (mx.bfloat16, mx.float16)
    exact = small_model[0](ids, picture).logits
    assert mx.abs(out.logits - exact).max() < 0.1 * exact.std()


@pytest.mark.parametrize("head", [None, "own"])
def test_save_and_from_pretrained(tmp_path, checkpoint, head):
    model, processor = load(checkpoint("apple", head=head), dtype="float32")
    inputs = processor("What is <image>?", mx.zeros((128, 128, 3), dtype=mx.uint8))
    expected = model(inputs["input_ids"], inputs["pixel_values"]).logits
    model.save_pretrained(tmp_path / "alone")
    again = FastVlmForConditionalGeneration.from_pretrained(tmp_path / "alone", dtype="float32")
    assert mx.array_equal(again(inputs["input_ids"], inputs["pixel_values"]).logits, expected)
    with pytest.raises(FileExistsError, match="exists already"):
        model.save_pretrained(tmp_path / "alone")
    model.save_pretrained(tmp_path / "alone", processor=processor, force=True)
    again, same = load(tmp_path / "alone")
    question = same("What is <image>?", mx.zeros((128, 128, 3), dtype=mx.uint8))
    assert all(mx.array_equal(question[name], inputs[name]) for name in inputs)
    assert (same.eos_token_ids, same.pad_token_id, same.image_settings, same.chat_template) == (
        processor.eos_token_ids,
        processor.pad_token_id,
        processor.image_settings,
        processor.chat_template,
    )


@pytest.mark.parametrize("source", ["apple", "transformers"])
def test_save_for_transformers(tmp_path, checkpoint, source):
    model, processor = load(checkpoint(source), dtype="float32")
    ids, picture = [1, *[model.config.image_token_id] * 6, 2], pixels(1)
    expected = model(mx.array([ids]), picture).logits
    if source == "apple":
        with pytest.raises(ValueError, match="is no token"):
            model.save_pretrained(tmp_path / "saved", layout="transformers")
        model.save_pretrained(tmp_path / "saved", layout="transformers", processor=processor)
    else:
        model.save_pretrained(tmp_path / "saved", layout="transformers")
    again = FastVlmForConditionalGeneration.from_pretrained(tmp_path / "saved", dtype="float32")
    ids = [again.config.image_token_id if id == model.config.image_token_id else id for id in ids]
    assert mx.allclose(again(mx.array([ids]), picture).logits[..., :320], expected, atol=1e-4)


def test_what_transformers_can_not_hold(tmp_path, checkpoint):
    model, processor = load(checkpoint("transformers"), dtype="float32")
    with pytest.raises(ValueError, match="layout must be"):
        model.save_pretrained(tmp_path / "x", layout="onnx")
    nn.quantize(model, group_size=32, bits=8, class_predicate=lambda path, _: path.endswith("_proj"))
    with pytest.raises(ValueError, match="quantized"):
        model.save_pretrained(tmp_path / "x", layout="transformers")
    model.save_pretrained(tmp_path / "quantized", processor=processor)
    again, _ = load(tmp_path / "quantized", dtype="float32")
    assert mx.array_equal(again(mx.array([[1, 2]])).logits, model(mx.array([[1, 2]])).logits)
    linear = FastVlmForConditionalGeneration(FastVlmConfig(small.VISION, small.TEXT, projector_type="linear"))
    with pytest.raises(ValueError, match="no projector 'linear'"):
        linear.save_pretrained(tmp_path / "x", layout="transformers")
    assert not (tmp_path / "x").exists()
