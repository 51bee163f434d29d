"""Which kernel a depthwise convolution takes on a GPU: MLX's, or this package's own (``kernels.py``).

The own one is off until it was proven on the machine: where a model is loaded, each of its convolutions is computed by
both, on random arrays of its shape. The own one has to be right, and then the faster one is kept: for the process, and
in a file, so that the next one need not do it again. Never while a graph is built or compiled: there, what was not
proven is MLX's.

``MLX_FASTVLM_KERNELS`` in the environment: ``auto`` (the default) does that; ``own`` takes this package's kernels
unproven, ``mlx`` never does.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..files import atomic_file, read_optional_json, write_json
from . import kernels

VARIABLE = "MLX_FASTVLM_KERNELS"
MODES = ("auto", "own", "mlx")
RUNS, AT_A_TIME = 5, 8  # timings of each kernel, and how often each computes
# Of the largest value: sums in another order, GELU by a polynomial; more where the type has less.
TOLERANCE = 1e-5

# The same by MLX: image, weights, what the ending needs -> the ending's outputs.
Theirs = Callable[..., list[mx.array]]
# Height, width, channels, outputs, side of the kernel, stride, ending, type; how many images does not matter.
Key = tuple[int, int, int, int, int, int, str, str]

_lock = threading.Lock()
_own_is_better: dict[Key, bool] = {}
_of_thread = threading.local()


def mode() -> str:
    """What the environment asks for.

    Raises:
        ValueError: for anything but ``MODES``.
    """
    asked = os.environ.get(VARIABLE) or "auto"
    if asked not in MODES:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(MODES)}, got {asked!r}.")
    return asked


def convolve(
    x: mx.array, weight: mx.array, stride: int, ending: str, more: list[mx.array], theirs: Theirs
) -> list[mx.array]:
    """A depthwise convolution and what follows it, by the kernel that was chosen; arguments of ``kernels.depthwise``.

    Args:
        theirs: the same by MLX.
    """
    if kernels.backend() is None or any(each.dtype != x.dtype for each in (weight, *more)):
        return theirs(x, weight, *more)
    asked, key = mode(), _key(x, weight, stride, ending)
    wanted = getattr(_of_thread, "wanted", None)
    if wanted is not None:
        wanted[key] = theirs
    if asked == "own" or (asked == "auto" and _own_is_better.get(key, False)):
        return own(x, weight, stride, ending, more, theirs)
    return theirs(x, weight, *more)


def own(
    x: mx.array, weight: mx.array, stride: int, ending: str, more: list[mx.array], theirs: Theirs
) -> list[mx.array]:
    """By this package's kernel; gradients are those of ``theirs``."""
    function: Any = mx.custom_function(lambda x, weight, *more: kernels.depthwise(x, weight, stride, ending, *more))

    @function.vjp  # type: ignore[untyped-decorator]  # its stub has no types
    def _(primals: Sequence[mx.array], cotangents: Any, outputs: Any) -> list[mx.array]:
        cotangents = cotangents if isinstance(cotangents, (list, tuple)) else [cotangents]
        return mx.vjp(lambda *inputs: theirs(*inputs), list(primals), list(cotangents))[1]

    return list(function(x, weight, *more))


def _key(x: mx.array, weight: mx.array, stride: int, ending: str) -> Key:
    return (*x.shape[1:], *weight.shape[:2], stride, ending, str(x.dtype))  # type: ignore[return-value]  # five numbers


# Proving


def prove(encode: Callable[[mx.array], Any], pixels: int, dtype: mx.Dtype) -> None:
    """Choose a kernel for each depthwise convolution of a network that sees one image; nothing else is computed.

    Does nothing where there is nothing to choose: on a CPU, where the environment chose, and where it is known.

    Args:
        encode: (1, pixels, pixels, 3) -> anything, through :func:`convolve`.
    """
    if mode() != "auto" or kernels.backend() is None:
        return
    with _recording() as wanted:
        encode(mx.zeros((1, pixels, pixels, 3), dtype))
    with _lock:
        stored = _stored()
        _own_is_better.update({key: stored[name] for key in wanted if (name := _name(key)) in stored})
        new = {key: theirs for key, theirs in wanted.items() if key not in _own_is_better}
        if not new:
            return
        mx.synchronize()
        _own_is_better.update({key: _is_better(key, theirs) for key, theirs in new.items()})
        _store({_name(key): _own_is_better[key] for key in new})


@contextlib.contextmanager
def _recording() -> Iterator[dict[Key, Theirs]]:
    wanted: dict[Key, Theirs] = {}
    _of_thread.wanted = wanted
    try:
        yield wanted
    finally:
        _of_thread.wanted = None


def _is_better(key: Key, theirs: Theirs) -> bool:
    """Whether the own kernel is right for this shape, and faster."""
    height, width, channels, outputs, side, stride, ending, type_name = key
    dtype = getattr(mx, type_name.removeprefix("mlx.core."))
    numbers = [mx.random.key(seed) for seed in range(4)]
    x = mx.random.normal((1, height, width, channels), key=numbers[0]).astype(dtype)
    weight = (mx.random.normal((outputs, side, side, 1), key=numbers[1]) / side).astype(dtype)
    count = len(kernels.ENDINGS[ending][0])
    more = [mx.random.normal((outputs,), key=number).astype(dtype) for number in numbers[2 : 2 + count]]
    mx.eval(x, weight, more)

    def ours() -> list[mx.array]:
        return kernels.depthwise(x, weight, stride, ending, *more)

    try:
        if not _is_right(ours(), theirs(*(each.astype(mx.float32) for each in (x, weight, *more))), dtype):
            return False
    except Exception:  # whatever a compiler or a driver does not like about it: MLX's works
        return False
    times = [(_seconds(ours), _seconds(lambda: theirs(x, weight, *more))) for _ in range(RUNS)]
    return statistics.median(a for a, _ in times) < statistics.median(b for _, b in times)


def _is_right(got: list[mx.array], exact: list[mx.array], dtype: mx.Dtype) -> bool:
    allowed = max(TOLERANCE, float(mx.finfo(dtype).eps))
    close = [mx.abs(a.astype(mx.float32) - b).max() <= allowed * mx.abs(b).max() for a, b in zip(got, exact)]
    return all(bool(each.item()) for each in close)  # NaN is not


def _seconds(function: Callable[[], list[mx.array]]) -> float:
    start = time.perf_counter()
    mx.eval([function() for _ in range(AT_A_TIME)])
    return time.perf_counter() - start


# The file


def file() -> Path:
    """Where choices are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlx_fastvlm" / "kernels.json"


def _name(key: Key) -> str:
    return " ".join(map(str, key))


def _machine() -> str:
    """What a choice is valid for."""
    version = mx.__version__  # type: ignore[attr-defined]  # its stub lacks it
    return f"{mx.device_info().get('device_name', kernels.backend())}, MLX {version}, kernels {kernels.VERSION}"


def _read() -> dict[str, Any]:
    """The file's content; nothing where it can't be read, which only means to prove again."""
    try:
        found = read_optional_json(file())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _stored() -> dict[str, bool]:
    choices = _read().get(_machine())
    return {name: value for name, value in choices.items() if type(value) is bool} if isinstance(choices, dict) else {}


def _store(choices: dict[str, bool]) -> None:
    with contextlib.suppress(OSError):  # nowhere to write: the next process proves again
        file().parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file()) as unfinished:
            write_json(unfinished, {**_read(), _machine(): {**_stored(), **choices}})
