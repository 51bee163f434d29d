"""Tells the package, and the tests, that they are on a GPU, while MLX computes on the CPU.

The package then makes all choices that it makes on a GPU: layers' forms, types, caches, memory. Only what is compiled
for a GPU in memory is not compiled: a CPU would need seconds of the system's C++ compiler for each.
"""

import sys

import mlx.core as mx

_default_device, _set_default_device = mx.default_device, mx.set_default_device
_device = mx.Device(mx.gpu)


def tell():
    """From now on, for this process."""
    mx.default_device, mx.set_default_device = _told, _set
    mx.disable_compile()


def _told():
    asks = sys._getframe(1).f_globals.get("__name__", "")
    return _device if asks.split(".")[0] in ("mlx_fastvlm", "tests") else _default_device()


def _set(device):
    global _device
    _device = device if isinstance(device, mx.Device) else mx.Device(device)
