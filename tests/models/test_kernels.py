"""The own kernels' arithmetic, compiled as C++; and that nothing takes them before they were proven."""

import json

import mlx.core as mx
import pytest

from mlx_fastvlm import VisionConfig, load
from mlx_fastvlm.evaluation import report
from mlx_fastvlm.models import depthwise, gpu, kernels, vision
from mlx_fastvlm.models.forms import specialize
from tests.support import grid
from tests.support.compilers import needs_compiler
from tests.support.small import VISION

ENDINGS = list(kernels.ENDINGS)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return grid.compiled(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(autouse=True)
def not_compiled():
    """MLX would run a C++ compiler for each fused function."""
    mx.disable_compile()
    yield
    mx.enable_compile()


class Machine:
    """A GPU that runs the own kernels, unless it is told otherwise.

    Attributes:
        calls: the names of the endings of kernels that were run.
        wrong: endings that it gets wrong; those that its compiler refuses are in ``refused``.
    """

    def __init__(self, library):
        self.library, self.calls, self.wrong, self.refused = library, [], set(), set()

    def __call__(self, backend, ending):
        assert backend == "metal"

        def call(**how):
            self.calls.append(ending)
            if ending in self.refused:
                raise RuntimeError("the compiler does not like it")
            outputs = grid.run(self.library, {**how, "name": ending})
            return [x * 1.01 for x in outputs] if ending in self.wrong else outputs

        return call


@pytest.fixture
def machine(library, monkeypatch, tmp_path):
    machine = Machine(library)
    monkeypatch.setattr(kernels, "backend", lambda: "metal")
    monkeypatch.setattr(kernels, "_kernel", machine)
    monkeypatch.setattr(depthwise, "_own_is_better", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(depthwise.VARIABLE, raising=False)
    return machine


@pytest.fixture
def faster(monkeypatch):
    """The own kernels take half of MLX's time."""

    def seconds(function):
        function()
        return 1.0 if function.__name__ == "ours" else 2.0

    monkeypatch.setattr(depthwise, "_seconds", seconds)


def inputs(dtype, height, width, channels, double, k, ending, batch=1):
    mx.random.seed(0)
    shapes = [(batch, height, width, channels), (channels * double, k, k, 1)]
    shapes += [(channels * double,)] * len(kernels.ENDINGS[ending][0])
    return [(mx.random.normal(shape) * 1.5).astype(dtype) for shape in shapes]


def exact(arrays, stride, ending):
    return gpu._by_mlx(stride, ending)(*(x.astype(mx.float32) for x in arrays))


@needs_compiler
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(("k", "stride"), grid.KERNELS)
def test_the_kernel_computes_what_mlx_computes(machine, k, stride, ending):
    """Sizes that patches divide and that they do not, images smaller than the kernel, batches, doubled channels."""
    for height, width, channels, double, batch in (
        (8, 8, 16, 1, 1),
        (9, 13, 5, 2, 2),
        (2, 3, 33, 1, 1),
        (1, 1, 3, 2, 3),
    ):
        arrays = inputs(mx.float32, height, width, channels, double, k, ending, batch)
        got = kernels.depthwise(*arrays[:2], stride, ending, *arrays[2:])
        expected = exact(arrays, stride, ending)
        assert len(got) == len(expected)
        for a, b in zip(got, expected):
            assert a.shape == b.shape
            assert mx.abs(a - b).max() <= 2e-6 * mx.maximum(mx.abs(b).max(), 1)


@needs_compiler
@pytest.mark.parametrize("ending", ENDINGS)
def test_bfloat16_is_rounded_once(machine, ending):
    """Within half a step of what float32 gives for the same numbers; a sum in bfloat16 would be many steps off."""
    arrays = inputs(mx.bfloat16, 9, 10, 16, 1, 7, ending)
    got = kernels.depthwise(*arrays[:2], 1, ending, *arrays[2:])
    for a, b in zip(got, exact(arrays, 1, ending)):
        assert a.dtype == mx.bfloat16
        assert (mx.abs(a.astype(mx.float32) - b) <= mx.maximum(mx.abs(b), 1e-3) * 2**-8 + 5e-6).all()


def tower(dtype=mx.float32):
    """The small tower in a GPU's forms."""
    mx.random.seed(1)
    model = vision.FastViTHD(VisionConfig(**VISION))
    model.apply(lambda x: (mx.random.normal(x.shape) * 0.15).astype(dtype))
    return specialize(model.eval(), mx.gpu)


def features(model):
    return model(mx.random.uniform(shape=(1, 64, 128, 3), key=mx.random.key(5))).last_hidden_state


@needs_compiler
def test_the_tower_is_the_same_with_own_kernels(machine, monkeypatch):
    model = tower()
    monkeypatch.setenv(depthwise.VARIABLE, "mlx")
    expected = features(model)
    assert not machine.calls
    monkeypatch.setenv(depthwise.VARIABLE, "own")
    assert mx.allclose(features(model), expected, atol=1e-5 * expected.std().item())
    assert set(machine.calls) == set(ENDINGS)


def test_gradients_are_those_of_mlx(monkeypatch):
    """Of all inputs and through all outputs; the kernel itself has none."""
    arrays, theirs = inputs(mx.float32, 6, 5, 4, 2, 3, "skip"), gpu._by_mlx(1, "skip")
    calls = []

    def kernel(x, weight, stride, ending, *more):
        calls.append(ending)
        return [mx.stop_gradient(y) for y in theirs(x, weight, *more)]

    monkeypatch.setattr(kernels, "depthwise", kernel)

    def gradients(convolve):
        def loss(*arrays):
            a, b = convolve(*arrays[:2], 1, "skip", list(arrays[2:]), theirs)
            return (a * mx.sin(a)).sum() + (b * b).sum()

        return mx.grad(loss, argnums=(0, 1, 2, 3))(*arrays)

    for got, expected in zip(gradients(depthwise.own), gradients(depthwise.convolve)):
        assert mx.abs(expected).max() > 0
        assert mx.allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert calls


@needs_compiler
def test_nothing_is_taken_before_it_was_proven(machine):
    model = tower()
    features(model)
    assert not machine.calls


def proven(machine, size=64):
    model = tower()
    depthwise.prove(model, size, mx.float32)
    return model, dict(depthwise._own_is_better)


@needs_compiler
def test_what_is_right_and_faster_is_kept(machine, faster):
    machine.wrong, machine.refused = {"bias"}, {"plain"}
    model, chosen = proven(machine)
    kinds = {key[6]: value for key, value in chosen.items()}
    assert kinds == {"plain": False, "bias": False, "skip": True, "gelu": True}
    machine.calls.clear()
    model(mx.zeros((1, 64, 64, 3)))
    assert set(machine.calls) == {"skip", "gelu"}
    machine.calls.clear()
    model(mx.zeros((1, 128, 128, 3)))  # shapes that nobody has seen
    assert not machine.calls


@needs_compiler
def test_what_is_slower_is_not_kept(machine, monkeypatch):
    monkeypatch.setattr(depthwise, "_seconds", lambda function: 2.0 if function.__name__ == "ours" else 1.0)
    assert set(proven(machine)[1].values()) == {False}


@needs_compiler
def test_another_process_need_not_prove_again(machine, faster, monkeypatch):
    _, chosen = proven(machine)
    assert set(chosen.values()) == {True}
    depthwise._own_is_better.clear()
    machine.calls.clear()
    assert proven(machine)[1] == chosen
    assert not machine.calls
    depthwise._own_is_better.clear()
    monkeypatch.setattr(kernels, "VERSION", "another")
    proven(machine)
    assert machine.calls


@needs_compiler
@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}', "null"])
def test_a_broken_file_means_to_prove_again(machine, faster, content):
    depthwise.file().parent.mkdir(parents=True)
    depthwise.file().write_text(content)
    assert set(proven(machine)[1].values()) == {True}
    assert list(json.loads(depthwise.file().read_text()))[-1].endswith(kernels.VERSION)


@needs_compiler
def test_without_a_place_to_write_it_goes_on(machine, faster, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert set(proven(machine)[1].values()) == {True}


@needs_compiler
def test_loading_proves(machine, checkpoint, monkeypatch):
    """For the model's own image size and type; but not where the weights stay on disk."""
    proofs = []
    monkeypatch.setattr(depthwise, "_is_better", lambda key, theirs: proofs.append(key) or False)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    load(checkpoint("apple"), dtype="float32", lazy=True)
    assert not proofs
    load(checkpoint("apple"), dtype="float32", force=True)
    assert {key[-1] for key in proofs} == {"mlx.core.float32"}
    count = len(proofs)
    load(checkpoint("apple"), dtype="float32", force=True)
    assert len(proofs) == count > 5


def test_the_environment_chooses(monkeypatch):
    monkeypatch.setenv(depthwise.VARIABLE, "fast")
    with pytest.raises(ValueError, match="MLX_FASTVLM_KERNELS must be one of auto, own, mlx, got 'fast'"):
        depthwise.mode()
    monkeypatch.setenv(depthwise.VARIABLE, "")
    assert depthwise.mode() == "auto"


def test_a_cpu_takes_none(monkeypatch):
    monkeypatch.setenv(depthwise.VARIABLE, "own")
    assert kernels.backend() is None
    arrays = inputs(mx.float32, 4, 4, 4, 1, 3, "plain")
    (got,) = depthwise.convolve(*arrays, 1, "plain", [], gpu._by_mlx(1, "plain"))
    assert mx.array_equal(got, exact(arrays, 1, "plain")[0])


@needs_compiler
def test_the_report_shows_both_kernels(machine, monkeypatch):
    """And what a compiler says, where it refuses one."""
    machine.refused = {"plain"}
    monkeypatch.setattr(report, "ENOUGH", 0)
    monkeypatch.setattr(report, "FEWEST", 1)
    x, weight = inputs(mx.float32, 8, 8, 4, 1, 3, "plain")

    def cases(_):
        yield "own", 1.0, lambda: report._own(x, weight, 1)

    monkeypatch.setattr(report, "_cases", cases)
    assert next(report._operations())[2:] == ["failed", "the compiler does not like it"]
