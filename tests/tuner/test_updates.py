"""Gradients -> new weights: fused as on a GPU, and as on a CPU, the same."""

import math
import shutil

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

from mlx_fastvlm.tuner.updates import Updates
from tests.support.graphs import operations

OPTIMIZERS = {
    "adamw": lambda: optim.AdamW(optim.cosine_decay(1e-2, 20), weight_decay=0.1, bias_correction=True),
    "sgd": lambda: optim.SGD(1e-2, momentum=0.9),
}
with_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="MLX fuses on the CPU only with a C++ compiler")


def started(optimizer, max_norm=1.0):
    mx.random.seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3, bias=False))
    optimizer.init(model.trainable_parameters())
    mx.eval(model.parameters(), optimizer.state)
    return model, Updates(model, optimizer, max_norm)


def gradients(model, seed, size=1.0):
    mx.random.seed(seed)
    return tree_map(lambda x: size * mx.random.normal(x.shape), model.trainable_parameters())


def as_on_gpu(monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))


@with_compiler
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fused_is_the_same(name, monkeypatch):
    plain, updates = started(OPTIMIZERS[name]())
    with monkeypatch.context() as on_gpu:
        as_on_gpu(on_gpu)
        optimizer = OPTIMIZERS[name]()
        fused, fused_updates = started(optimizer)
    for step in range(5):
        for model, done in ((plain, updates), (fused, fused_updates)):
            mean, norm = done.mean(gradients(model, step), 7)
            done.apply(mean)
            mx.eval(model.parameters(), norm)
    assert optimizer.step.item() == 5
    for (key, x), (_, y) in zip(tree_flatten(plain.parameters()), tree_flatten(fused.parameters())):
        assert mx.allclose(x, y, rtol=1e-6, atol=1e-7), key


@with_compiler
def test_fused_it_takes_few_kernels(monkeypatch):
    """What one more matrix adds, in AdamW."""

    def count():
        found = []
        for matrices in (1, 2):
            model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(matrices)))
            optimizer = OPTIMIZERS["adamw"]()
            optimizer.init(model.trainable_parameters())
            updates = Updates(model, optimizer, 1.0)
            given = gradients(model, 0)
            mx.eval(given, model.parameters(), optimizer.state)
            mean, _ = updates.mean(given, 7)
            updates.apply(mean)
            names = operations(*(x for _, x in tree_flatten([model.parameters(), optimizer.state])))
            found.append(len([name for name in names if name not in ("Broadcast", "Full", "Reshape", "Flatten")]))
        return found[1] - found[0]

    plain = count()
    as_on_gpu(monkeypatch)
    fused = count()
    assert (plain, fused) == (30, 9)


def test_gradients_are_bounded():
    model, updates = started(optim.SGD(1.0), max_norm=0.5)
    given = gradients(model, 1)
    length = math.sqrt(sum(float(x.square().sum()) for _, x in tree_flatten(given))) / 4
    mean, norm = updates.mean(given, 4)
    assert norm.item() == pytest.approx(length, rel=1e-5)
    bounded = math.sqrt(sum(float(x.square().sum()) for _, x in tree_flatten(mean)))
    assert bounded == pytest.approx(0.5, rel=1e-4)
    small = gradients(model, 1, 1e-3)
    mean, _ = updates.mean(small, 4)
    for (key, x), (_, y) in zip(tree_flatten(small), tree_flatten(mean)):
        assert mx.allclose(x / 4, y, rtol=1e-6), key


def test_types_stay():
    model = nn.Linear(4, 4)
    model.set_dtype(mx.bfloat16)
    optimizer = optim.SGD(0.1)
    optimizer.init(model.trainable_parameters())
    updates = Updates(model, optimizer, 1.0)
    mean, norm = updates.mean(tree_map(mx.ones_like, model.trainable_parameters()), 3)
    assert {x.dtype for _, x in tree_flatten(mean)} == {mx.bfloat16}
    assert norm.dtype == mx.float32
    updates.apply(mean)
    assert model.weight.dtype == mx.bfloat16
