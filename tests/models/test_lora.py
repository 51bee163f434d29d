"""Adapters around linear layers: which, what they compute, what a folder of another base is told."""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.dora import DoRAEmbedding as TheirDoRAEmbedding
from mlx_lm.tuner.dora import DoRALinear as TheirDoRA
from mlx_lm.tuner.lora import LoRAEmbedding as TheirLoRAEmbedding
from mlx_lm.tuner.lora import LoRALinear as TheirLoRA
from mlx_lm.tuner.utils import load_adapters as load_theirs

from mlx_fastvlm import FastVlmForConditionalGeneration, load
from mlx_fastvlm.cache.fingerprint import model_fingerprint
from mlx_fastvlm.checkpoints.adapters import AdapterConfig, write_adapter
from mlx_fastvlm.errors import UsageError
from mlx_fastvlm.models.forms import specialize
from mlx_fastvlm.models.lora import adapter_tensors, adapters_of, add_adapters, load_adapters, with_keys
from tests.support.adapters import adapted, logits, new_model, randomize, written

KINDS = ["lora", "dora"]
BITS = [None, 4]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", BITS)
def test_new_adapters_change_nothing(checkpoint, kind, bits):
    model = new_model(checkpoint("apple"), bits)
    before = logits(model)
    names = add_adapters(model, AdapterConfig(kind))
    assert len(names) == 3 * 7
    assert mx.abs(logits(model) - before).max() < 1e-5 * before.std()
    randomize(model)
    assert mx.abs(logits(model) - before).max() > 0.1 * before.std()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("kind", "theirs"), [("lora", TheirLoRA), ("dora", TheirDoRA)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_layer_computes_what_mlx_lms_does(kind, theirs, bits, biased):
    mx.random.seed(1)
    linear = nn.Linear(64, 96, bias=biased)
    base = nn.QuantizedLinear.from_linear(linear, 32, bits) if bits else linear
    holder = nn.Module()
    holder.language_model = nn.Module()
    holder.language_model.layers = [nn.Module()]
    holder.language_model.layers[0].proj = base
    add_adapters(holder, AdapterConfig(kind, rank=4, scale=3.0))
    randomize(holder)
    mine = holder.language_model.layers[0].proj
    other = theirs.from_base(base, r=4, scale=3.0)
    for part in ("lora_a", "lora_b", "m"):
        if part in mine:
            other[part] = mine[part]
    x = mx.random.normal((2, 5, 64))
    assert mx.abs(mine(x) - other(x)).max() < 1e-5
    weight = other.fuse(dequantize=True).weight
    assert mx.abs(mine.adapted_weight() - weight).max() < 1e-5


@pytest.mark.parametrize(
    ("kind", "theirs", "bits"),
    [  # of packed ones mlx-lm's DoRA can't make a head
        ("lora", TheirLoRAEmbedding, None),
        ("lora", TheirLoRAEmbedding, 4),
        ("dora", TheirDoRAEmbedding, None),
    ],
)
def test_an_embedding_computes_what_mlx_lms_does(kind, theirs, bits):
    mx.random.seed(1)
    base = nn.Embedding(96, 64)
    base = base.to_quantized(32, bits) if bits else base
    holder = nn.Module()
    holder.language_model = nn.Module()
    holder.language_model.layers = []
    holder.language_model.embed_tokens = base
    add_adapters(holder, AdapterConfig(kind, rank=4, scale=3.0, keys=("language_model.embed_tokens",)))
    mine = holder.language_model.embed_tokens
    ids, x = mx.array([[1, 5], [95, 1]]), mx.random.normal((2, 5, 64))
    assert mx.abs(mine(ids) - base(ids)).max() < 1e-5
    assert mx.abs(mine.as_linear(x) - base.as_linear(x)).max() < 1e-5
    randomize(holder)
    other = theirs.from_base(base, r=4, scale=3.0)
    for part in ("lora_a", "lora_b", "m"):
        if part in mine:
            other[part] = mine[part]
    assert mx.abs(mine(ids) - base(ids)).max() > 1e-3
    assert mx.abs(mine(ids) - other(ids)).max() < 1e-5
    assert mx.abs(mine.as_linear(x) - other.as_linear(x)).max() < 1e-5
    weight = other.fuse(dequantize=True).weight
    assert mx.abs(mine.adapted_weight() - weight).max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_embedding_is_its_matrix(kind):
    holder = nn.Module()
    holder.language_model = nn.Module()
    holder.language_model.layers = []
    holder.language_model.embed_tokens = nn.Embedding(96, 64).to_quantized(32, 4)
    add_adapters(holder, AdapterConfig(kind, rank=4, scale=3.0, keys=("language_model.embed_tokens",)))
    randomize(holder)
    mine = holder.language_model.embed_tokens
    x, weight = mx.random.normal((2, 5, 64)), mine.adapted_weight()
    assert mx.abs(mine(mx.array([3, 95])) - weight[mx.array([3, 95])]).max() < 1e-5
    assert mx.abs(mine.as_linear(x) - x @ weight.T).max() < 1e-4


def test_only_adapters_are_trained(checkpoint):
    model = new_model(checkpoint("apple"), 4)
    model.freeze()
    names = add_adapters(model, AdapterConfig("dora", num_layers=1))
    trained = dict(tree_flatten(model.trainable_parameters()))
    assert trained.keys() == {f"{name}.{part}" for name in names for part in ("lora_a", "lora_b", "m")}
    assert trained.keys() == adapter_tensors(model).keys()
    assert all(name.startswith("language_model.layers.2.") for name in names)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"num_layers": 1, "keys": ("self_attn.q_proj",)}, ["language_model.layers.2.self_attn.q_proj"]),
        ({"num_layers": 0, "keys": ("multi_modal_projector.linear_2",)}, ["multi_modal_projector.linear_2"]),
        ({"keys": ("lm_head", "mlp.up_proj"), "num_layers": 1}, ["lm_head", "language_model.layers.2.mlp.up_proj"]),
        ({"num_layers": -1, "keys": ("mlp.up_proj",)}, [f"language_model.layers.{i}.mlp.up_proj" for i in range(3)]),
        ({"num_layers": 99, "keys": ("mlp.up_proj",)}, [f"language_model.layers.{i}.mlp.up_proj" for i in range(3)]),
    ],
)
def test_which_layers(checkpoint, options, names):
    model = new_model(checkpoint("apple", head="own"))
    assert add_adapters(model, AdapterConfig(**options)) == names
    assert set(adapters_of(model)) == set(names)


def test_projector_and_tower(checkpoint):
    model = new_model(checkpoint("apple"))
    config = with_keys(model, AdapterConfig(num_layers=1), projector=True, vision=True)
    names = add_adapters(model, config)
    assert {"multi_modal_projector.linear_1", "vision_tower.stages.3.blocks.0.token_mixer.qkv"} <= set(names)
    last = with_keys(model, AdapterConfig(), vision=True, vision_stages=2).keys
    of_tower = [name for name in last if name.startswith("vision_tower.")]
    assert {name.split(".")[2] for name in of_tower} == {"3", "4", "se"}
    before = logits(model)
    layer = model.vision_tower.stages[0].blocks[0].mlp.fc1
    layer.lora_b = mx.ones(layer.lora_b.shape) * 0.1
    assert mx.abs(logits(model) - before).max() > 1e-3 * before.std()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"keys": ("self_attn.x_proj",)}, "'self_attn.x_proj' is not a linear layer"),
        ({"keys": ("language_model.norm",)}, "is not a linear layer or embedding"),
        ({"num_layers": 0}, "No layer is chosen"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"rank": True}, "rank must be a whole number"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"scale": float("nan")}, "scale must be"),
        ({"num_layers": -2}, "num_layers must be at least -1"),
        ({"fine_tune_type": "prefix"}, "fine_tune_type must be one of lora, dora, full"),
    ],
)
def test_what_can_not_be(checkpoint, options, said):
    model = new_model(checkpoint("apple"))
    with pytest.raises(UsageError, match=said):
        add_adapters(model, AdapterConfig(**options))
    assert not adapters_of(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sides", [{}, {"projector": True, "vision": True}, {"embeddings": True}])
def test_a_folder_is_the_model_again(checkpoint, tmp_path, kind, sides):
    model, config = adapted(checkpoint("apple"), kind, **sides)
    folder = written(tmp_path / "adapters", model, config)
    again, _ = load(checkpoint("apple"), dtype="float32", adapter_path=folder)
    assert mx.array_equal(logits(again), logits(model))
    assert not again.training


def test_a_folder_on_a_quantized_base(checkpoint, tmp_path):
    model, config = adapted(checkpoint("apple"), bits=4)
    folder = written(tmp_path, model, config)
    again = new_model(checkpoint("apple"), 4)
    load_adapters(again, folder)
    assert mx.array_equal(logits(again), logits(model))


@pytest.mark.parametrize("kind", KINDS)
def test_mlx_lm_reads_the_folder(checkpoint, tmp_path, kind, monkeypatch):
    model, config = adapted(checkpoint("apple"), kind)
    folder = written(tmp_path, model, config)
    layers = property(lambda model: model.language_model.layers)
    monkeypatch.setattr(FastVlmForConditionalGeneration, "layers", layers, raising=False)
    theirs = load_theirs(new_model(checkpoint("apple")), str(folder))
    assert mx.abs(logits(theirs) - logits(model)).max() < 1e-5 * logits(model).std()


def test_mlx_lms_config_is_read(checkpoint, tmp_path):
    """It writes all its flags, and no keys where none were named."""
    model, config = adapted(checkpoint("apple"))
    folder = written(tmp_path, model, config)
    content = json.loads((folder / "adapter_config.json").read_text())
    del content["lora_parameters"]["keys"]
    content |= {"batch_size": 4, "model": "x", "lr_schedule": None, "num_layers": 2}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    again, _ = load(checkpoint("apple"), dtype="float32", adapter_path=folder)
    assert mx.array_equal(logits(again), logits(model))


def test_full_weights_are_a_folder_too(checkpoint, tmp_path):
    model = new_model(checkpoint("apple"))
    name = "language_model.layers.2.mlp.up_proj.weight"
    model.language_model.layers[2].mlp.up_proj.weight *= 1.5
    write_adapter(tmp_path, AdapterConfig("full"), {name: model.language_model.layers[2].mlp.up_proj.weight})
    again, _ = load(checkpoint("apple"), dtype="float32", adapter_path=tmp_path)
    assert mx.array_equal(logits(again), logits(model))


UP = "language_model.layers.2.mlp.up_proj"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(f"{UP}.lora_b"), f"{UP}.lora_b is missing"),
        (lambda t: t.update({f"{UP}.lora_b": mx.zeros((4, 7))}), r"lora_b has shape \(4, 7\).* takes \(4, 160\)"),
        (lambda t: t.update({f"{UP}.weight": mx.zeros((160, 64))}), f"{UP}.weight is nothing that this"),
        (lambda t: t.update({"model.layers.0.lora_a": mx.zeros((1, 1))}), "model.layers.0.lora_a is nothing"),
        (lambda t: t.update({f"{UP}.lora_b": mx.zeros((4, 160), mx.int32)}), "and no floats"),
        (lambda t: t.update({f"{UP}.lora_b": mx.full((4, 160), np.nan)}), rf"1 of 28 .* not finite \({UP}.lora_b\)"),
        (lambda t: t.update({f"{UP}.lora_a": t[f"{UP}.lora_a"] * np.inf}), "are not finite"),
    ],
)
def test_tensors_that_do_not_fit(checkpoint, tmp_path, change, said):
    model, config = adapted(checkpoint("apple"))
    tensors = adapter_tensors(model)
    change(tensors)
    write_adapter(tmp_path, config, tensors)
    with pytest.raises(ValueError, match=said) as raised:
        load(checkpoint("apple"), adapter_path=tmp_path)
    assert "\n" not in str(raised.value)
    untouched = new_model(checkpoint("apple"))
    before = logits(untouched)
    with pytest.raises(ValueError, match="adapters"):
        load_adapters(untouched, tmp_path)
    assert not adapters_of(untouched)
    assert mx.array_equal(logits(untouched), before)


def test_adapters_of_a_wider_base(tmp_path, checkpoint):
    """The demo is 256 wide and has 5 layers, the small model 64 and 3."""
    model, config = adapted(checkpoint("apple"), num_layers=-1)
    folder = written(tmp_path, model, config)
    with pytest.raises(ValueError, match=r"down_proj.lora_a has shape \(160, 4\), and this model takes \(320, 4\)"):
        load("demo", adapter_path=folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds no JSON object"),
        ('{"fine_tune_type": "prefix"}', "fine_tune_type must be one of"),
        ('{"lora_parameters": {"rank": "8"}}', "rank must be a whole number"),
        ('{"lora_parameters": {"alpha": 16, "rank": 8}}', "has alpha and no scale"),
        ('{"lora_parameters": {"scale": 1e400}}', "scale must be a number"),
        ('{"lora_parameters": {"scale": 1' + "0" * 400 + "}}", "scale must be a number"),
        ('{"lora_parameters": {"keys": "q_proj"}}', "keys must be a list"),
        ('{"lora_parameters": {"keys": [5]}}', "keys must be names"),
        ('{"lora_parameters": 5}', "must be an object"),
        ('{"num_layers": 1e9}', "num_layers must be a whole number"),
        ('{"peft_type": "LORA"}', "has no adapter_model.safetensors"),
        ('{"lora_parameters": {"keys": ["mlp.nothing"]}}', "do not fit this model .*'mlp.nothing'"),
    ],
)
def test_configs_that_are_none(checkpoint, tmp_path, content, said):
    model, config = adapted(checkpoint("apple"))
    written(tmp_path, model, config)
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as raised:
        load(checkpoint("apple"), adapter_path=tmp_path)
    assert "\n" not in str(raised.value)


def test_folders_without_adapters(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config\.json; give"):
        load(checkpoint("apple"), adapter_path=tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"has no adapters\.safetensors"):
        load(checkpoint("apple"), adapter_path=tmp_path)
    (tmp_path / "adapters.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="is broken or cut off"):
        load(checkpoint("apple"), adapter_path=tmp_path)


def test_adapters_twice_are_refused(checkpoint, tmp_path):
    model, config = adapted(checkpoint("apple"))
    folder = written(tmp_path, model, config)
    with pytest.raises(ValueError, match="has adapters already"):
        load_adapters(model, folder)
    with pytest.raises(UsageError, match="has adapters already"):
        add_adapters(model, config)


def test_a_cache_tells_scales_apart(checkpoint):
    """Or keys and values computed with one would be taken for the other's."""
    one, other = (adapted(checkpoint("apple"), scale=scale)[0] for scale in (1.0, 2.0))
    assert model_fingerprint(one) != model_fingerprint(other)


def test_bfloat16_stays(checkpoint):
    model, _ = load(checkpoint("apple"), dtype="bfloat16")
    add_adapters(model, AdapterConfig("dora"))
    assert logits(model).dtype == mx.bfloat16


def test_a_gpus_forms_run_them_too(checkpoint):
    """Those that read the parameters of layers inside step aside."""
    model, _ = adapted(checkpoint("apple"), "dora", projector=True, vision=True)
    expected = logits(model)
    specialize(model, mx.gpu)
    assert mx.abs(logits(model) - expected).max() <= 1e-4 * expected.std()
