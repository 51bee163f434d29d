"""Gradients -> new weights: all as one array or one by one, fused as on a GPU or not, the same."""

import math

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

from mlx_fastvlm.tuner.updates import Updates
from tests.support.compilers import needs_compiler
from tests.support.graphs import operations

OPTIMIZERS = {
    "adamw": lambda: optim.AdamW(optim.cosine_decay(1e-2, 20), weight_decay=0.1, bias_correction=True),
    "sgd": lambda: optim.SGD(1e-2, momentum=0.9),
}


WAYS = {"packed": 2**25, "one by one": 0}  # and the values that are packed at most


def started(optimizer, max_norm=1.0):
    mx.random.seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3, bias=False))
    updates = Updates(model, optimizer, max_norm)
    mx.eval(model.parameters(), optimizer.state)
    return model, updates


def gradients(model, seed, size=1.0):
    mx.random.seed(seed)
    return tree_map(lambda x: size * mx.random.normal(x.shape), model.trainable_parameters())


def steps(model, updates, count=5):
    for step in range(count):
        mean, norm = updates.mean(updates.gather(gradients(model, step)), 7)
        updates.apply(mean)
        mx.eval(model.parameters(), norm)
    return dict(tree_flatten(model.parameters()))


def as_on_gpu(monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))


@needs_compiler
@pytest.mark.parametrize("most", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fused_is_the_same(name, most, monkeypatch):
    monkeypatch.setattr("mlx_fastvlm.tuner.updates.MOST", most)
    plain = steps(*started(OPTIMIZERS[name]()))
    as_on_gpu(monkeypatch)
    optimizer = OPTIMIZERS[name]()
    fused = steps(*started(optimizer))
    assert optimizer.step.item() == 5
    for key, x in plain.items():
        assert mx.allclose(x, fused[key], rtol=1e-6, atol=1e-7), key


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_packed_is_the_same(name, max_norm, monkeypatch):
    packed = steps(*started(OPTIMIZERS[name](), max_norm))
    monkeypatch.setattr("mlx_fastvlm.tuner.updates.MOST", 0)
    apart = steps(*started(OPTIMIZERS[name](), max_norm))
    assert packed.keys() == apart.keys()
    for key, x in packed.items():
        if max_norm is None:
            assert mx.array_equal(x, apart[key]), key
        else:  # the squares are summed in another order
            assert mx.allclose(x, apart[key], rtol=1e-6, atol=1e-7), key


@needs_compiler
def test_it_takes_few_kernels(monkeypatch):
    """What one more matrix adds, in AdamW."""

    def count():
        found = []
        for matrices in (2, 3):
            model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(matrices)))
            optimizer = OPTIMIZERS["adamw"]()
            updates = Updates(model, optimizer, 1.0)
            given = gradients(model, 0)
            mx.eval(given, model.parameters(), optimizer.state)
            mean, _ = updates.mean(updates.gather(given), 7)
            updates.apply(mean)
            names = operations(*(x for _, x in tree_flatten([model.parameters(), optimizer.state])))
            views = ("Broadcast", "Full", "Reshape", "Flatten", "Unflatten", "Slice", "Squeeze")
            found.append(len([name for name in names if name not in views]))
        return found[1] - found[0]

    assert count() == 0  # but for the copies that one Concatenate makes, of its gradient and of itself
    monkeypatch.setattr("mlx_fastvlm.tuner.updates.MOST", 0)
    plain = count()
    as_on_gpu(monkeypatch)
    assert (plain, count()) == (29, 5)


@pytest.mark.parametrize("most", WAYS.values(), ids=WAYS)
def test_gradients_are_bounded(most, monkeypatch):
    monkeypatch.setattr("mlx_fastvlm.tuner.updates.MOST", most)
    model, updates = started(optim.SGD(1.0), max_norm=0.5)
    given = gradients(model, 1)
    length = math.sqrt(sum(float(x.square().sum()) for _, x in tree_flatten(given))) / 4
    mean, norm = updates.mean(updates.gather(given), 4)
    assert norm.item() == pytest.approx(length, rel=1e-5)
    bounded = math.sqrt(sum(float(x.square().sum()) for _, x in tree_flatten(mean)))
    assert bounded == pytest.approx(0.5, rel=1e-4)
    small = gradients(model, 1, 1e-3)
    mean, _ = updates.mean(updates.gather(small), 4)
    for (key, x), (_, y) in zip(tree_flatten(updates.gather(small)), tree_flatten(mean)):
        assert mx.allclose(x / 4, y, rtol=1e-6), key


def test_types_stay():
    model = nn.Linear(4, 4)
    model.set_dtype(mx.bfloat16)
    updates = Updates(model, optim.SGD(0.1), 1.0)
    mean, norm = updates.mean(updates.gather(tree_map(mx.ones_like, model.trainable_parameters())), 3)
    assert {x.dtype for _, x in tree_flatten(mean)} == {mx.bfloat16}
    assert norm.dtype == mx.float32
    updates.apply(mean)
    assert model.weight.dtype == mx.bfloat16


def test_an_optimizer_that_looks_at_matrices_is_given_them():
    optimizer = optim.Muon(1e-2)
    model, updates = started(optimizer)
    assert updates.gather(model.trainable_parameters()).keys() == model.trainable_parameters().keys()
    steps(model, updates)
    momenta = [array for name, array in tree_flatten(optimizer.state) if name.endswith("weight.v")]
    assert {array.shape for array in momenta} == {(4, 8), (3, 4)}
