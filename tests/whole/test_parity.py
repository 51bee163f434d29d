"""Stage by stage against transformers and timm, on the same small weights, for every layout."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_fastvlm import FastVlmConfig, FastVlmForConditionalGeneration, FastVlmMultiModalProjector, load
from mlx_fastvlm.cache.policy import make_cache
from tests.support import checkpoints, small
from tests.support.differences import deviations

pytestmark = pytest.mark.gpu

LIMIT = 1e-4

LAYOUTS = [
    ("transformers", {}),
    ("apple", {}),
    ("mlx-vlm", {}),
    ("apple", {"shards": 3}),
    ("apple", {"head": "copy"}),
    ("apple", {"head": "own"}),
    ("mlx-vlm", {"head": "own"}),
    ("apple", {"training": True}),
    ("transformers", {"training": True}),
]


def pixels(count):
    return mx.array(small.pixels(count).transpose(0, 2, 3, 1))


def ids_for(model, ids):
    return mx.array(np.where(ids == small.IMAGE_TOKEN, model.config.image_token_id, ids))


@pytest.mark.parametrize(("layout", "how"), LAYOUTS, ids=lambda v: v if isinstance(v, str) else "-".join(v) or "plain")
def test_every_layout_computes_what_transformers_does(checkpoint, recorded, layout, how):
    model, _ = load(checkpoint(layout, **how), dtype="float32")
    form = "training" if how.get("training") else "inference"
    tower = model.vision_tower(pixels(1), output_hidden_states=True)
    for i, stage in enumerate([*tower.hidden_states, tower.last_hidden_state]):
        assert deviations(stage, recorded[f"{form}.stage{i}"]) < LIMIT
    logits = model(ids_for(model, small.batch()[0][:1]), pixels(2)).logits
    key = {"own": "row.untied_logits"}.get(how.get("head"), "row.logits")
    assert deviations(logits, recorded["training.row.logits" if form == "training" else key]) < LIMIT


@pytest.fixture(scope="module")
def batch_output(small_model):
    model, _ = small_model
    ids, mask, positions = small.batch()
    return model(
        ids_for(model, ids),
        pixels(3),
        attention_mask=mx.array(mask),
        position_ids=mx.array(positions),
        labels=mx.array(small.labels()),
        output_hidden_states=True,
        output_attentions=True,
    )


def real(array, axis=1):
    """The second row without its padding, whose values mean nothing."""
    padding = len(small.expand(small.TEXT_IDS[0])) - len(small.expand(small.TEXT_IDS[1]))
    array = np.array(array)
    return array[0], np.moveaxis(array[1], axis - 1, 0)[padding:]


def test_projected_features(small_model, recorded):
    assert deviations(small_model[0].get_image_features(pixels(3)), recorded["projected"]) < LIMIT


def test_pooled_embedding(small_model, recorded):
    assert deviations(small_model[0].vision_tower(pixels(3)).pooler_output, recorded["pooled"]) < LIMIT


@pytest.mark.parametrize("kind", [*small.ACTIVATIONS, "gelu.no_bias"])
def test_projector_activations(recorded, kind):
    act, _, no_bias = kind.partition(".")
    config = {**small.transformers_config(), "projector_hidden_act": act, "multimodal_projector_bias": not no_bias}
    projector = FastVlmMultiModalProjector(FastVlmConfig.from_dict(config))
    for name, parameter in tree_flatten(projector.parameters()):
        weight = small.tensor(f"model.multi_modal_projector.{name}", parameter.shape)
        projector.load_weights([(name, mx.array(weight))], strict=False)
    features = mx.array(recorded["inference.stage5"]).flatten(1, 2)
    assert deviations(projector(features), recorded[f"projector.{kind}"]) < LIMIT


@pytest.mark.parametrize("kind", small.PROJECTORS)
def test_llava_projectors_in_apples_layout(tmp_path, recorded, kind):
    tensors = {n: t for n, t in checkpoints.small_tensors().items() if "projector" not in n}
    tensors |= small.projector_tensors(kind)
    config = {**checkpoints.apple_config(), "mm_projector_type": kind}
    model, _ = load(checkpoints.write(tmp_path, "apple", tensors=tensors, config_dict=config), dtype="float32")
    assert deviations(model.get_image_features(pixels(1)), recorded[f"projector.{kind}"]) < LIMIT
    model.save_pretrained(tmp_path / "saved")
    again = FastVlmForConditionalGeneration.from_pretrained(tmp_path / "saved", dtype="float32")
    assert again.config.projector_type == kind
    assert mx.array_equal(again.get_image_features(pixels(1)), model.get_image_features(pixels(1)))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_implementations(checkpoint, recorded, implementation):
    model = FastVlmForConditionalGeneration.from_pretrained(
        checkpoint("apple"), dtype="float32", attn_implementation=implementation
    )
    logits = model(ids_for(model, small.batch()[0][:1]), pixels(2)).logits
    assert deviations(logits, recorded["row.logits"]) < LIMIT


@pytest.mark.parametrize("kept", [1, 3, [0, 5]])
def test_logits_to_keep(small_model, recorded, kept):
    model, _ = small_model
    keep = kept if isinstance(kept, int) else mx.array(kept)
    logits = model(ids_for(model, small.batch()[0][:1]), pixels(2), logits_to_keep=keep).logits
    whole = recorded["row.logits"]
    assert deviations(logits, whole[:, -kept:] if isinstance(kept, int) else whole[:, kept]) < LIMIT


def test_placeholders_in_embeddings(checkpoint, recorded):
    model, _ = load(checkpoint("transformers"), dtype="float32")
    embeddings = model.get_input_embeddings()(mx.array(small.batch()[0][:1]))
    assert deviations(model(inputs_embeds=embeddings, pixel_values=pixels(2)).logits, recorded["row.logits"]) < LIMIT


def test_features_encoded_before(small_model, recorded):
    model, _ = small_model
    features = {"image": model.get_image_features(pixels(2))}
    logits = model(ids_for(model, small.batch()[0][:1]), mm_encoder_outputs=features).logits
    assert deviations(logits, recorded["row.logits"]) < LIMIT


def test_a_larger_vocabulary(checkpoint, recorded):
    model, _ = load(checkpoint("apple", head="own"), dtype="float32")
    rows, multiple = small.RESIZED
    embedding = model.resize_token_embeddings(rows, pad_to_multiple_of=multiple)
    assert [*embedding.weight.shape, model.lm_head.weight.shape[0]] == recorded["resized.size"].tolist()
    assert model.config.text_config.vocab_size == embedding.weight.shape[0]
    # Both draw from a normal distribution whose deviation is sqrt(1e-9) of the old rows'.
    old, new = (np.array(x) for x in (embedding.weight[:320], embedding.weight[320:]))
    for rows in (new, recorded["resized.rows"]):
        assert np.abs((rows - old.mean(axis=0)) / old.std(axis=0)).max() < 2e-4
        assert rows.std(axis=0) == pytest.approx(old.std(axis=0) * 1e-9**0.5, rel=0.5)
    # The old tokens' logits are untouched.
    logits = model(ids_for(model, small.batch()[0][:1]), pixels(2)).logits
    assert deviations(logits[..., :320], recorded["row.untied_logits"]) < LIMIT


def test_bfloat16_strays_no_further_than_torchs(checkpoint, recorded):
    """Root mean square of the difference from float32, stage by stage and layer by layer, in standard deviations."""
    model = FastVlmForConditionalGeneration.from_pretrained(checkpoint("apple"), dtype="bfloat16")
    tower = model.vision_tower(pixels(2), output_hidden_states=True)
    out = model(ids_for(model, small.batch()[0][:1]), pixels(2), output_hidden_states=True)
    exact = FastVlmForConditionalGeneration.from_pretrained(checkpoint("apple"), dtype="float32")
    exact_tower = exact.vision_tower(pixels(2), output_hidden_states=True)
    exact_out = exact(ids_for(model, small.batch()[0][:1]), pixels(2), output_hidden_states=True)

    def steps(tower, out):
        text = (out.image_hidden_states, *out.hidden_states[1:], out.logits)
        return [np.array(x.astype(mx.float32)) for x in (*tower.hidden_states, tower.last_hidden_state, *text)]

    pairs = zip(steps(tower, out), steps(exact_tower, exact_out))
    drift = np.array([np.sqrt(np.mean((a - b) ** 2)) / b.std() for a, b in pairs])
    assert (drift < 1.3 * recorded["drift"]).all(), np.stack([drift, recorded["drift"]])


@pytest.mark.parametrize("layer", range(small.TEXT["num_hidden_layers"] + 1))
def test_every_decoder_layer_with_left_padding(batch_output, recorded, layer):
    for ours, theirs in zip(real(batch_output.hidden_states[layer]), real(recorded[f"batch.hidden{layer}"])):
        assert deviations(ours, theirs) < LIMIT


@pytest.mark.parametrize("layer", range(small.TEXT["num_hidden_layers"]))
def test_attention_weights(batch_output, recorded, layer):
    ours, theirs = batch_output.attentions[layer], recorded[f"batch.attention{layer}"]
    for a, b in zip(real(ours, axis=2), real(theirs, axis=2)):
        assert deviations(a, b) < LIMIT


def test_logits_and_loss_with_left_padding(batch_output, recorded):
    for ours, theirs in zip(real(batch_output.logits), real(recorded["batch.logits"])):
        assert deviations(ours, theirs) < LIMIT
    assert batch_output.loss.item() == pytest.approx(recorded["batch.loss"].item(), rel=1e-5)
    assert batch_output.image_hidden_states.shape == (3, small.TOKENS_PER_IMAGE, small.TEXT["hidden_size"])


def test_greedy_tokens_over_a_kv_cache(small_model, recorded):
    model, _ = small_model
    cache = make_cache(model)
    logits = model(ids_for(model, small.batch()[0][:1]), pixels(2), past_key_values=cache, logits_to_keep=1).logits
    tokens = []
    for _ in recorded["row.greedy"]:
        tokens.append(mx.argmax(logits[0, -1]).item())
        logits = model(mx.array([[tokens[-1]]]), past_key_values=cache).logits
    assert tokens == recorded["row.greedy"].tolist()


def test_a_generation_loop_of_prepared_inputs(small_model, recorded):
    """The loop of transformers' GenerationMixin: all ids every time, and the model is told which are new."""
    model, _ = small_model
    cache, ids, new = make_cache(model), ids_for(model, small.batch()[0][:1]), None
    prompt = ids.shape[1]
    for _ in recorded["row.greedy"]:
        inputs = model.prepare_inputs_for_generation(
            ids,
            next_sequence_length=new,
            past_key_values=cache,
            attention_mask=mx.ones(ids.shape),
            pixel_values=pixels(2),
            is_first_iteration=new is None,
            logits_to_keep=1,
        )
        assert ("pixel_values" in inputs) == (new is None)
        ids = mx.concatenate([ids, mx.argmax(model(**inputs).logits[:, -1:], axis=-1)], axis=1)
        new = 1
    assert ids[0, prompt:].tolist() == recorded["row.greedy"].tolist()


def test_layouts_agree_on_the_bit(checkpoint):
    """Apple's and mlx-vlm's files hold the same numbers in another order, so folding must give the same tensors."""
    one, other = (dict(tree_flatten(load(checkpoint(name))[0].parameters())) for name in ("apple", "mlx-vlm"))
    assert one.keys() == other.keys()
    assert all(mx.array_equal(one[name], other[name]) for name in one)
