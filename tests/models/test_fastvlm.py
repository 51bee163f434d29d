"""The model's own promises beyond parity."""

import json
import math
import shutil
import threading

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_fastvlm import FastVlmForConditionalGeneration, load
from tests.support import small
from tests.support.images import IMAGE
from tests.support.paths import REFERENCE


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


def test_a_placeholder_without_an_image_is_a_token_of_its_own(checkpoint):
    """A model can answer with ``<image>``; transformers looks it up then."""
    model, _ = load(checkpoint("transformers"))
    row = model.get_input_embeddings()(mx.array([small.IMAGE_TOKEN]))
    assert mx.array_equal(model.embed(mx.array([[small.IMAGE_TOKEN]]))[0], row)


def test_placeholders_are_found_in_embeddings(checkpoint):
    model, _ = load(checkpoint("transformers"))
    ids = mx.array([[1, *[small.IMAGE_TOKEN] * 6, 2]])
    embeddings = model.get_input_embeddings()(ids)
    image = pixels(1)
    assert mx.array_equal(model(inputs_embeds=embeddings, pixel_values=image).logits, model(ids, image).logits)
    features = model.get_image_features(image)
    assert model.get_placeholder_mask(None, embeddings, features).tolist() == [[False, *[True] * 6, False]]


def test_a_placeholder_without_an_embedding_is_not_searched(small_model):
    model, _ = small_model
    with pytest.raises(ValueError, match="pass input_ids"):
        model(inputs_embeds=mx.zeros((1, 8, 64)), pixel_values=pixels(1))


def test_a_placeholders_id_is_never_looked_up(checkpoint, small_model):
    """-200 has no embedding, 300 has one; what stands there must not matter."""
    image = pixels(1)
    logits = []
    for model, id in ((small_model[0], -200), (load(checkpoint("transformers"))[0], small.IMAGE_TOKEN)):
        logits.append(model(mx.array([[1, *[id] * 6, 2]]), image).logits)
    assert mx.array_equal(*logits)


def test_logits_to_keep(small_model):
    model, _ = small_model
    ids = mx.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    whole = model(ids).logits
    assert mx.allclose(model(ids, logits_to_keep=2).logits, whole[:, -2:], atol=1e-5)
    assert mx.allclose(model(ids, logits_to_keep=mx.array([0, 3])).logits, whole[:, mx.array([0, 3])], atol=1e-5)


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [([0, -1], {0, 3}), ([1], {1}), ([7], set()), ([-9, 2], {2}), (2, {2}), ((0,), {0}), (True, {0, 1, 2, 3})],
)
def test_some_of_the_hidden_states(small_model, wanted, kept):
    """As transformers 5.23 answers these, None in the places of the others."""
    model, _ = small_model
    ids = mx.array([[1, 2, 3]])
    everything = model(ids, output_hidden_states=True).hidden_states
    states = model(ids, output_hidden_states=wanted).hidden_states
    assert {i for i, state in enumerate(states) if state is not None} == kept
    assert all(mx.array_equal(states[i], everything[i]) for i in kept)
    assert len(states) == 4
    assert model(ids, output_hidden_states=0).hidden_states is None
    assert model(ids, output_hidden_states=[]).hidden_states is None


def test_levels_are_not_taken_for_pixel_values(demo):
    model, processor = demo
    levels = mx.stack([mx.array(image.pixels) for image in processor.prepare(IMAGE, 128)])
    with pytest.raises(ValueError, match=r"got mlx.core.uint8; make them with processor"):
        model.get_image_features(levels)
    with pytest.raises(ValueError, match="floats"):
        model.vision_tower(levels.astype(mx.int32))
    assert model.get_image_features(processor.to_pixel_values(levels)).shape[:2] == (1, 4)


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


@pytest.mark.parametrize("labels", [[[1]], [[1], [2]], [[-100, -100]], [[5, -100]]])
def test_the_loss_is_nan_where_no_label_counts(small_model, labels):
    """As in transformers; a row's first label has nothing to be predicted from."""
    model, _ = small_model
    labels = mx.array(labels)
    assert math.isnan(model(mx.abs(labels), labels=labels).loss.item())


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
    for multiple in (1.3, 0):
        with pytest.raises(ValueError, match=f"pad_to_multiple_of must be a whole number from 1, got {multiple}"):
            model.resize_token_embeddings(99, pad_to_multiple_of=multiple)
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


def test_features_and_images_exclude_each_other(small_model):
    model, _ = small_model
    image = pixels(1)
    features = {"image": model.get_image_features(image)}
    with pytest.raises(ValueError, match="both pixel_values and mm_encoder_outputs"):
        model(mx.array([[-200] * 6]), image, mm_encoder_outputs=features)


def test_prepared_inputs_are_transformers(small_model):
    model, _ = small_model
    ids, mask, positions = (mx.array(x) for x in small.batch())
    recorded = json.loads((REFERENCE / "recorded.json").read_text())["generation_steps"]
    steps = {
        "first": {"is_first_iteration": True},
        "later": {"next_sequence_length": 1},
        "later without a cache": {"use_cache": False},
    }
    assert steps.keys() == recorded.keys()
    images = mx.array(small.pixels(3))
    for name, step in steps.items():
        inputs = model.prepare_inputs_for_generation(ids, attention_mask=mask, pixel_values=images, labels=ids, **step)
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
    ids, image = mx.array([[1, *[-200] * 6, 2]]), pixels(1)
    out = half(ids, image)
    assert (out.image_hidden_states.dtype, out.logits.dtype) == (mx.bfloat16, mx.float16)
    exact = small_model[0](ids, image).logits
    assert mx.abs(out.logits - exact).max() < 0.1 * exact.std()


def in_a_thread(function):
    """What it returns there; or the error."""
    results = []

    def run():
        try:
            results.append(function())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    return results[0]


def test_weights_are_read_when_the_model_is(checkpoint, tmp_path):
    """So the file may change then, and another thread may use the model."""
    folder = shutil.copytree(checkpoint("apple"), tmp_path / "copy")
    expected = FastVlmForConditionalGeneration.from_pretrained(folder)(mx.array([[1, 2, 3]])).logits
    mx.eval(expected)
    model = in_a_thread(lambda: FastVlmForConditionalGeneration.from_pretrained(folder))
    lazy = in_a_thread(lambda: FastVlmForConditionalGeneration.from_pretrained(folder, lazy=True))
    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        file.write(bytes(weights.stat().st_size // 2))
    assert mx.array_equal(model(mx.array([[1, 2, 3]])).logits, expected)
    with pytest.raises(RuntimeError, match="Stream"):
        mx.eval(lazy(mx.array([[1, 2, 3]])).logits)
