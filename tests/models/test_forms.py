"""A device's forms of the layers: the same parameters and results as the plain ones, whatever is done to a model."""

import copy
import pickle

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear

from mlx_fastvlm import FastVlmConfig, FastVlmForConditionalGeneration, load, make_cache
from mlx_fastvlm.models import cpu_ops, vision
from mlx_fastvlm.models.forms import FORMS, PLAIN, plain, specialize
from tests.support import small

DEVICES = [mx.cpu, mx.gpu]
IMAGE_IDS = mx.array([[1, *[-200] * 6, 2, 7, 9, 11]])
LINEAR = (nn.Linear, nn.QuantizedLinear)


@pytest.fixture(params=DEVICES, ids=["cpu", "gpu"])
def device(request):
    return request.param


def new_model(tied=True, **text):
    """The small model with random weights that all matter, plain layers."""
    mx.random.seed(3)
    config = FastVlmConfig(small.VISION, {**small.TEXT, **text}, image_token_id=-200, tie_word_embeddings=tied)
    model = FastVlmForConditionalGeneration(config)
    for layer in model.modules():
        for name, value in layer.items():
            if isinstance(value, mx.array):
                layer[name] = mx.random.normal(value.shape) * (0.15 if value.ndim > 1 else 0.5)
    return model.eval()


@pytest.fixture
def model():
    return new_model()


def pixels():
    return mx.random.uniform(shape=(1, 128, 192, 3), key=mx.random.key(1))


def logits(model):
    return model(IMAGE_IDS, pixels()).logits


def close(got, expected):
    return mx.abs(got - expected).max() <= 1e-4 * expected.std()


def forms_in(model):
    return {type(layer) for layer in model.modules()} & PLAIN.keys()


def state(model):
    """All that must stay: names, the arrays themselves, what is frozen, and whether each layer is in training."""
    layers = [(name, layer.training, sorted(layer._no_grad)) for name, layer in model.named_modules()]
    return layers, [(name, id(array)) for name, array in tree_flatten(model.parameters())]


def test_every_form_is_a_plain_layer_with_its_parameters():
    for forms in FORMS.values():
        for plain_class, form in forms.items():
            assert issubclass(form, plain_class)
            assert form.__init__ is plain_class.__init__


def test_a_model_computes_the_same_with_the_forms_of_any_device(model, device):
    model.vision_tower.freeze()
    expected, before = logits(model), state(model)
    assert not forms_in(model)
    assert specialize(model, device) is model
    assert state(model) == before
    assert forms_in(model) == set(FORMS[device].values()) & forms_in(model) != set()
    assert close(logits(model), expected)
    kinds = [type(layer) for layer in model.modules()]
    assert [type(layer) for layer in specialize(model, device).modules()] == kinds
    other = DEVICES[1 - DEVICES.index(device)]
    assert forms_in(specialize(model, other)) <= set(FORMS[other].values())
    assert not forms_in(plain(model))
    assert mx.array_equal(logits(model), expected)


@pytest.mark.gpu
def test_loading_chooses_the_forms_of_the_device(checkpoint):
    device = mx.default_device().type
    model, _ = load(checkpoint("apple"))
    kinds = [type(layer) for layer in model.modules()]
    assert forms_in(model)
    assert [type(layer) for layer in specialize(plain(model), device).modules()] == kinds


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_a_cpus_forms_are_the_plain_layers_in_another_type(model, dtype):
    """They are made for float32: what they gain there would be lost, and their polynomials with it."""
    model.language_model.set_dtype(dtype)
    model.vision_tower.set_dtype(mx.bfloat16)
    model.multi_modal_projector.set_dtype(mx.bfloat16)
    expected = logits(model)
    assert mx.array_equal(logits(specialize(model, mx.cpu)), expected)


def test_a_model_that_comes_back_to_float32_is_fast_again(model, monkeypatch):
    specialize(model, mx.cpu).set_dtype(mx.bfloat16)
    convolutions = []
    monkeypatch.setattr(cpu_ops, "banded", lambda *a, f=cpu_ops.banded: convolutions.append(a) or f(*a))
    logits(model)
    assert not convolutions
    model.set_dtype(mx.float32)
    logits(model)
    assert convolutions


def test_quantized_layers_get_forms_too(model, device):
    nn.quantize(specialize(model, device), 32, 8, class_predicate=lambda _, layer: _divides(layer))
    expected = logits(copy.deepcopy(model))
    specialize(model, device)
    if device == mx.cpu:
        assert not any(type(layer) in (nn.QuantizedLinear, nn.QuantizedEmbedding) for layer in model.modules())
    assert any("scales" in layer for layer in model.modules())
    assert close(logits(model), expected)
    assert close(logits(plain(model)), expected)


def _divides(layer):
    return hasattr(layer, "to_quantized") and layer.weight.shape[-1] % 32 == 0


def adapted(model, adapter, chosen=lambda name: True):
    """An adapter of random weights around every linear layer and, for LoRA, a tied embedding; returns their names."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LINEAR) and chosen(name)]
    if adapter is LoRALinear and "lm_head" not in model:
        layers.append(("language_model.embed_tokens", model.language_model.embed_tokens))
    for name, layer in layers:
        kind = adapter if isinstance(layer, LINEAR) else LoRAEmbedding
        around = kind.from_base(layer, r=2, scale=0.5)
        around.lora_b = mx.random.normal(around.lora_b.shape) * 0.1
        replace(model, name, around)
    model.eval()
    return [name for name, _ in layers]


def replace(model, name, layer):
    *path, last = name.split(".")
    for part in path:
        model = model[int(part)] if isinstance(model, list) else model[part]
    model[last] = layer


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("adapter", [LoRALinear, DoRALinear])
def test_adapters_work_around_every_layer(adapter, bits, tied, device):
    model = new_model(tied)
    if bits:
        nn.quantize(model, 32, bits, class_predicate=lambda _, layer: _divides(layer))
    before = logits(model)
    names = adapted(specialize(model, device), adapter)
    assert {"fc1", "fc2", "qkv", "q_proj", "down_proj", "linear_1"} <= {name.split(".")[-1] for name in names}
    got = logits(model)
    expected = logits(plain(model))
    assert not mx.allclose(expected, before, atol=0.01)
    assert close(got, expected)
    assert close(logits(specialize(model, device)), expected)  # now also the layers inside
    for name, layer in list(model.named_modules()):
        if hasattr(layer, "fuse"):
            replace(model, name, layer.fuse(dequantize=True))
    assert close(logits(specialize(model, device)), expected)


def test_an_adapter_learns_where_forms_are(model, device):
    specialize(model, device).freeze()
    adapted(model, LoRALinear, lambda name: name.endswith(("fc2", "qkv", "down_proj")))
    gradients = nn.value_and_grad(model, lambda model: logits(model).square().mean())(model)[1]
    learned = dict(tree_flatten(gradients))
    assert learned
    assert all(name.split(".")[-1].startswith("lora_") for name in learned)
    assert all(mx.abs(gradient).max() > 0 for gradient in learned.values())


class UpsideDown(nn.Module):
    """A layer that looks at more than one pixel, around another."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def __call__(self, x):
        return self.layer(x[:, ::-1])


@pytest.mark.parametrize("within", ["fc1", "fc2", "conv", "pointwise", "depthwise", "act", "gate_proj", "token_mixer"])
def test_whatever_takes_a_layers_place_is_only_called(model, device, within, monkeypatch):
    monkeypatch.setattr(cpu_ops, "PIECE", 2**10)  # several bands
    monkeypatch.setattr(cpu_ops, "ENOUGH", 8)
    names = [name for name, _ in model.named_modules() if name.endswith(f".{within}") and "stem.conv" not in name]
    assert names  # the stem's first convolution says what type the tower computes in
    expected = logits(model)
    for name in names:
        replace(model, name, UpsideDown(dict(model.named_modules())[name]))
    turned = logits(model)
    assert not close(turned, expected)
    assert close(logits(specialize(model, device)), turned)


class Twice(nn.Linear):
    """A linear layer that does more than multiply."""

    def __call__(self, x):
        return 2 * super().__call__(x)


@pytest.mark.parametrize("within", ["fc1", "fc2", "qkv", "down_proj"])
def test_a_subclass_is_no_linear_layer_to_look_into(model, device, within):
    expected = logits(model)
    for name, layer in model.named_modules():
        if name.endswith(f".{within}"):
            layer.__class__ = Twice
    doubled = logits(model)
    assert not close(doubled, expected)
    assert close(logits(specialize(model, device)), doubled)


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("device", [None, *DEVICES], ids=["plain", "cpu", "gpu"])
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_models_can_be_copied_and_pickled(model, bits, device, copied):
    if bits:
        nn.quantize(model, 32, bits, class_predicate=lambda _, layer: _divides(layer))
    if device:
        specialize(model, device)
    model.vision_tower.freeze()
    twin = copied(model)
    assert [type(layer) for layer in twin.modules()] == [type(layer) for layer in model.modules()]
    assert mx.array_equal(logits(twin), logits(model))
    trainable = [[name for name, _ in tree_flatten(each.trainable_parameters())] for each in (twin, model)]
    assert trainable[0] == trainable[1]
    twin.language_model.norm.weight = twin.language_model.norm.weight * 2
    assert not close(logits(twin), logits(model))


def test_a_step_with_a_cache_is_the_same(model, device):
    """The shapes of a decode step: one token, caches filled."""
    answers = []
    for choose in (plain, lambda model: specialize(model, device)):
        cache = make_cache(choose(model))
        model(IMAGE_IDS, pixels(), past_key_values=cache)
        answers.append(model(mx.array([[5]]), past_key_values=cache).logits)
    assert close(answers[1], answers[0])


def test_a_stage_alone_can_be_specialized(device):
    block = vision.RepMixerBlock(8, 16, 3)
    for layer in block.modules():
        for name, value in layer.items():
            if isinstance(value, mx.array):
                layer[name] = mx.random.normal(value.shape)
    x = mx.random.normal((2, 20, 12, 8))
    expected = block(x)
    assert close(specialize(block, device)(x), expected)
