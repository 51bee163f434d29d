"""Ids of every type, and image features in their placeholders' places inside mx.compile."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_fastvlm import FastVlmConfig, FastVlmForConditionalGeneration, load, make_cache
from tests.support import small
from tests.support.compilers import needs_compiler

IDS = [[1, *[-200] * 6, 2, 7, 9]]


def pixels(count=1):
    return mx.array(small.pixels(count).transpose(0, 2, 3, 1))


@pytest.mark.parametrize("dtype", [mx.uint8, mx.uint16, mx.uint32, mx.uint64, mx.int8, mx.int16, mx.int32, mx.int64])
def test_ids_of_every_integer_type(small_model, dtype):
    """The placeholder -200 fits into few of them; ``argmax`` gives uint32."""
    model, _ = small_model
    ids = mx.array([[1, 2, 77, 9]])
    expected = model(ids, labels=ids)
    cache = make_cache(model)
    got = model(ids.astype(dtype), labels=ids.astype(dtype), past_key_values=cache)
    assert mx.array_equal(got.logits, expected.logits)
    assert got.loss.item() == expected.loss.item()
    inputs = model.prepare_inputs_for_generation(ids.astype(dtype), next_sequence_length=1, past_key_values=cache)
    assert model(**inputs).logits.shape == (1, 1, 320)
    with pytest.raises(ValueError, match="tokens: 0, features: 6"):
        model.get_placeholder_mask(ids.astype(dtype), None, mx.zeros((1, 6, 64)))


@pytest.mark.parametrize("dtype", [mx.uint16, mx.uint32, mx.int16, mx.int64])
def test_placeholders_of_every_type_that_holds_them(checkpoint, dtype):
    model, _ = load(checkpoint("transformers"))
    ids = mx.array(IDS)
    ids = mx.where(ids == -200, small.IMAGE_TOKEN, ids)
    assert mx.array_equal(model(ids.astype(dtype), pixels()).logits, model(ids, pixels()).logits)


def test_the_plain_loop(small_model):
    model, _ = small_model
    cache, tokens = make_cache(model), mx.array([[1, 2]])
    for _ in range(3):
        tokens = mx.argmax(model(tokens, past_key_values=cache).logits[:, -1], axis=-1)[:, None]
    assert tokens.dtype == mx.uint32
    assert cache[0].offset == 4


def test_features_can_be_placed_where_nothing_has_a_value_yet(small_model):
    model, _ = small_model
    features = model.get_image_features(pixels())
    placed = mx.compile(model.embed)
    assert mx.array_equal(placed(mx.array(IDS), features), model.embed(mx.array(IDS), features))
    for ids in ([[1, 2, 7, 9]], [[*[-200] * 5, 2]], [[*[-200] * 7, 2]], [[*[-200] * 700]]):
        assert mx.isnan(placed(mx.array(ids), features)).all()
    batches = mx.array([IDS, [[*[-200] * 6, 3, 4, 5, 6]]])
    placed = mx.vmap(model.embed, in_axes=(0, None))(batches, features)
    assert mx.array_equal(placed, mx.stack([model.embed(ids, features) for ids in batches]))


def tiny_model():
    """With a frozen tower and little else: as few kernels as can be, since each takes a C++ compiler a while."""
    mx.random.seed(0)
    vision = {"layers": [1, 1], "embed_dims": [16, 32], "image_size": 64, "token_mixers": ["repmixer"] * 2}
    text = {**small.TEXT, "num_hidden_layers": 1}
    config = FastVlmConfig({**vision, "pos_embs_shapes": [None] * 2}, text, image_token_id=-200)
    model = FastVlmForConditionalGeneration(config).train()
    model.vision_tower.freeze()
    mx.eval(model.parameters())
    return model


@pytest.mark.parametrize("encoded", [False, True], ids=["pixels", "features"])
@needs_compiler
def test_a_compiled_training_step(encoded):
    """MLX's usual one, over a batch with images: the same losses and the same weights."""
    images = mx.array(np.random.RandomState(1).random_sample((2, 16, 8, 3)).astype(np.float32))
    rows = mx.array([[5, -200, -200, 3, 9], [-200, -200, 8, 30, 31]])
    labels = mx.where(rows == -200, -100, rows)
    results = []
    for compiled in (False, True):
        model, optimizer = tiny_model(), optim.SGD(learning_rate=0.1)
        batch = {"pixel_values": images}
        if encoded:
            batch = {"mm_encoder_outputs": {"image": model.get_image_features(images)}}
        optimizer.init(model.trainable_parameters())
        loss_and_gradients = nn.value_and_grad(model, lambda ids, batch, m=model: m(ids, labels=labels, **batch).loss)

        def step(ids, batch, model=model, optimizer=optimizer, loss_and_gradients=loss_and_gradients):
            loss, gradients = loss_and_gradients(ids, batch)
            optimizer.update(model, gradients)
            return loss

        if compiled:
            state = [model.state, optimizer.state]
            step = mx.compile(step, inputs=state, outputs=state)
        losses = [step(rows, batch).item() for _ in range(3)]
        results.append((losses, dict(tree_flatten(model.parameters()))))
    (losses, weights), (compiled_losses, compiled_weights) = results
    assert compiled_losses == pytest.approx(losses, rel=1e-5)
    assert losses[0] > losses[2]
    for name, weight in weights.items():
        assert mx.allclose(compiled_weights[name], weight, rtol=1e-4, atol=1e-6), name
