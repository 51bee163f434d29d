"""What transformers' generation mixin asks of its fast_vlm, asked of this one; see test_transformers_habits.py."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import cache as mlx_lm

from mlx_fastvlm.cache.policy import make_cache
from mlx_fastvlm.errors import UsageError
from tests.support.transformers_small import (
    LENGTH,
    PAD,
    ROWS,
    example,
    made,
    same,
)


@pytest.fixture(scope="module")
def model():
    return made()


@pytest.fixture(scope="module")
def inputs():
    return example()


NEW = 5
WAYS = {
    "greedy": {},
    "sample": {"do_sample": True},
    "beam_search": {"num_beams": 2, "num_return_sequences": 2},
    "beam_sample": {"num_beams": 2, "num_return_sequences": 2, "do_sample": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_generate(model, inputs, way):
    out = model.generate(**inputs, max_new_tokens=NEW, **WAYS[way])
    times = WAYS[way].get("num_return_sequences", 1)
    assert out.shape == (ROWS * times, LENGTH + NEW)
    assert np.array_equal(out[:, :LENGTH], np.repeat(np.array(inputs["input_ids"]), times, axis=0))


@pytest.mark.parametrize("way", WAYS)
def test_generate_dict_outputs(model, inputs, way):
    shown = ("output_scores", "output_logits", "output_hidden_states", "output_attentions")
    how = {"max_new_tokens": NEW, **WAYS[way]}
    mx.random.seed(1)
    out = model.generate(**inputs, **how, return_dict_in_generate=True, **dict.fromkeys(shown, True))
    mx.random.seed(1)
    assert np.array_equal(out.sequences, model.generate(**inputs, **how))
    rows = ROWS * how.get("num_beams", 1)
    assert [x.shape for x in out.scores] == [x.shape for x in out.logits] == [(rows, 99)] * NEW
    lengths = [LENGTH, *[1] * (NEW - 1)]
    assert [[x.shape for x in step] for step in out.hidden_states] == [[(rows, n, 32)] * 3 for n in lengths]
    assert [[x.shape for x in step] for step in out.attentions] == [
        [(rows, 4, n, LENGTH + step)] * 2 for step, n in enumerate(lengths)
    ]
    assert same(model.logits(out.hidden_states[0][-1][:, -1]), out.logits[0])
    if "num_beams" in how:
        assert out.sequences_scores.shape == (ROWS * 2,)
        assert (out.sequences_scores < 0).all().item()
    assert len(out.past_key_values) == 2


def test_past_key_values_format(model, inputs):
    caches = model(**inputs, use_cache=True).past_key_values
    assert len(caches) == 2
    for cache in caches:
        assert [cache.in_order(x).shape for x in (cache.keys, cache.values)] == [(ROWS, 4, LENGTH, 8)] * 2


def test_left_padding_compatibility(model, inputs):
    pad = mx.full((ROWS, 4), PAD)
    padded = {
        "input_ids": mx.concatenate([pad, inputs["input_ids"]], axis=1),
        "attention_mask": mx.concatenate([mx.zeros((ROWS, 4)), inputs["attention_mask"]], axis=1),
        "pixel_values": inputs["pixel_values"],
    }
    positions = mx.maximum(mx.cumsum(padded["attention_mask"], axis=1) - 1, 0).astype(mx.int32)
    far = model(**padded, position_ids=positions).logits[:, -1]
    assert same(far, model(**inputs).logits[:, -1])
    plain, other = (model.generate(**batch, max_new_tokens=NEW)[:, -NEW:] for batch in (inputs, padded))
    assert np.array_equal(plain, other)


def test_eager_matches_sdpa_generate(inputs):
    model, found = made(), []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        found.append(model.generate(**inputs, max_new_tokens=NEW).tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize("beams", [1, 2])
def test_generate_from_inputs_embeds(model, inputs, beams):
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    how = {"max_new_tokens": NEW, "num_beams": beams}
    from_embeds = model.generate(inputs_embeds=embeds, **rest, **how)
    assert np.array_equal(from_embeds, model.generate(**inputs, **how)[:, LENGTH:])
    other = mx.random.normal(embeds.shape, key=mx.random.key(0))
    assert not np.array_equal(model.generate(inputs_embeds=other, **how), from_embeds)


@pytest.mark.parametrize("way", ["greedy", "beam_search"])
@pytest.mark.parametrize("images_again", [True, False])
def test_generate_continue_from_past_key_values(model, inputs, way, images_again):
    """Three tokens, and then two over what was kept, are five. Of beams only the length: the first pass has chosen."""
    whole = model.generate(**inputs, max_new_tokens=NEW, **WAYS[way])
    begun = model.generate(**inputs, max_new_tokens=NEW - 2, return_dict_in_generate=True)
    ids = begun.sequences
    again = {"pixel_values": inputs["pixel_values"]} if images_again else {}
    again |= {"attention_mask": mx.ones(ids.shape)}
    out = model.generate(ids, past_key_values=begun.past_key_values, max_new_tokens=2, **again, **WAYS[way])
    assert out.shape == whole.shape
    if way == "greedy":
        assert np.array_equal(out, whole)


def test_generate_continue_after_an_image_with_another(model, inputs):
    """The second turn's image is read, the first one's is not read again."""
    ids, pixels = inputs["input_ids"][:1], inputs["pixel_values"]
    begun = model.generate(ids, pixel_values=pixels[:1], max_new_tokens=2, return_dict_in_generate=True)
    turn = mx.concatenate([begun.sequences, ids], axis=1)
    on = model.generate(turn, pixel_values=pixels[1:2], past_key_values=begun.past_key_values, max_new_tokens=NEW)
    assert np.array_equal(on, model.generate(turn, pixel_values=pixels[:2], max_new_tokens=NEW))


def test_generate_with_quant_and_bounded_caches(inputs):
    model = made(text={"head_dim": 32})
    plain = model.generate(**inputs, max_new_tokens=NEW)
    kinds = {
        "quantized": make_cache(model, kv_bits=8, kv_group_size=32),
        "bounded": make_cache(model, max_kv_size=64),
        "rotating": [mlx_lm.RotatingKVCache(64) for _ in model.layers],
        "concatenating": [mlx_lm.ConcatenateKVCache() for _ in model.layers],
        "mlx-lm's own": mlx_lm.make_prompt_cache(model),
    }
    for name, caches in kinds.items():
        rest = {key: value for key, value in inputs.items() if key != "attention_mask"}
        out = model.generate(**rest, past_key_values=caches, max_new_tokens=NEW, num_beams=2)
        assert out.shape == plain.shape, name
        assert caches[0].offset == LENGTH + NEW - 1


def test_caches_that_can_not_be_gone_on_from(model, inputs):
    full = model(**inputs, use_cache=True).past_key_values
    with pytest.raises(UsageError, match="hold 11 tokens"):
        model.generate(**inputs, past_key_values=full)
    batch = [mlx_lm.BatchKVCache([0] * ROWS) for _ in model.layers]
    with pytest.raises(UsageError, match="offsets of their own"):
        model.generate(**inputs, past_key_values=batch)


def test_generate_methods_with_logits_to_keep(model, inputs):
    every, last = model(**inputs).logits, model(**inputs, logits_to_keep=1).logits
    assert last.shape == (ROWS, 1, 99)
    assert same(every[:, -1:], last)


def test_prepare_inputs_for_generation_kwargs_forwards(model, inputs):
    prepared = model.prepare_inputs_for_generation(**inputs, is_first_iteration=True, logits_to_keep=1, labels=1)
    assert prepared["logits_to_keep"] == 1
    assert "labels" not in prepared
    later = model.prepare_inputs_for_generation(**inputs, next_sequence_length=1)
    assert later["input_ids"].shape == (ROWS, 1)
    assert "pixel_values" not in later


@pytest.mark.parametrize(
    ("argument", "instead"),
    [
        ({"assistant_model": object()}, "no assisted decoding"),
        ({"prompt_lookup_num_tokens": 2}, "no assisted decoding"),
        ({"cache_implementation": "static"}, "past_key_values"),
        ({"custom_generate": "x"}, "leave it out"),
        ({"num_beam_groups": 2}, "no num_beam_groups"),
        ({"force_words_ids": [[1]]}, "no force_words_ids"),
        ({"use_cache": False}, "no use_cache"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_ways_that_there_are_not_are_refused_by_name(model, inputs, argument, instead):
    with pytest.raises(UsageError, match=instead):
        model.generate(**inputs, **argument)
