"""Changed weights are noticed, however they were changed, and nothing else is; and no old weights stay in memory."""

import copy
import gc
import pickle

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

from mlx_fastvlm.cache.parameters import parameters_of


def make():
    mx.random.seed(1)
    model = nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4), nn.Sequential(nn.Linear(4, 4, bias=False)))
    model.nested = {"more": [mx.ones(3), (mx.zeros(2),)]}
    return model


def swap(model):
    layers = model.layers
    layers[0].weight, layers[2].layers[0].weight = layers[2].layers[0].weight, layers[0].weight


def swap_values(model):
    weights = model.layers[0].weight, model.layers[2].layers[0].weight
    weights[0][:], weights[1][:] = mx.array(weights[1]), mx.array(weights[0])


def take_a_step(model):
    gradients = nn.value_and_grad(model, lambda m: m(mx.ones((1, 4))).sum())(model)[1]
    optim.SGD(0.1).update(model, gradients)


def compiled_step(model):
    """The state is replaced by what the function returns."""
    mx.eval(model.state)

    def double():
        model.layers[0].weight = model.layers[0].weight * 2

    mx.compile(double, inputs=model.state, outputs=model.state)()


CHANGES = {
    "a new array": lambda model: setattr(model.layers[0], "weight", model.layers[0].weight + 1),
    "in place": lambda model: model.layers[0].weight.__imul__(0),
    "one value": lambda model: model.layers[0].weight.__setitem__((3, 3), 0),
    "the last array": lambda model: model.nested["more"][1][0].__iadd__(1),
    "an item": lambda model: model.layers[1].__setitem__("weight", mx.zeros(4)),
    "update": lambda model: model.update(tree_map(lambda x: x * 2, model.parameters())),
    "load_weights": lambda model: model.load_weights([("layers.0.bias", mx.zeros(4))], strict=False),
    "an optimizer": take_a_step,
    "a compiled step": compiled_step,
    "swapped": swap,
    "swapped in place": swap_values,
    "another layer": lambda model: model.layers.__setitem__(1, nn.RMSNorm(4)),
    "one more layer": lambda model: model.layers.append(nn.RMSNorm(4)),
    "one layer less": lambda model: model.layers.pop(),
    "quantized": lambda model: nn.quantize(model, class_predicate=lambda *_: False) or model.apply(lambda x: x + 0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("computed", [True, False], ids=["computed", "lazy"])
def test_changes_are_noticed(change, computed):
    model, other = make(), make()
    if computed:
        mx.eval(model.parameters())
    before, others = parameters_of(model), parameters_of(other)
    change(model)
    after = parameters_of(model)
    assert after is not before
    mx.eval(model.parameters())
    assert parameters_of(model) is after
    assert parameters_of(other) is others


def test_what_changes_no_value_is_not_noticed():
    model = make()
    before = parameters_of(model)
    mx.eval(model.parameters())
    model.update(model.parameters())
    model.eval().freeze()
    model(mx.ones((2, 4)))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert parameters_of(twin) is not before
    assert parameters_of(model) is before
    assert parameters_of(model.layers[0]) is parameters_of(model.layers[0])


def test_replaced_weights_leave_the_memory():
    model = nn.Linear(512, 512, bias=False)
    mx.eval(model.parameters())
    parameters = parameters_of(model)
    used = mx.get_active_memory()
    for _ in range(3):
        model.weight = mx.ones((512, 512))
        mx.eval(model.parameters())
        assert mx.get_active_memory() <= used
    assert not parameters.are([x for _, x in tree_flatten(model.parameters())])
    del model
    gc.collect()
    assert mx.get_active_memory() <= used - 512 * 512 * 4


def test_another_module_at_a_place_in_memory_is_another():
    seen = []
    for _ in range(20):
        seen.append(parameters_of(nn.Linear(2, 2)))
    assert len({id(parameters) for parameters in seen}) == 20
