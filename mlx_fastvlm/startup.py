"""What has to happen before anything heavy is imported: MLX finds its BLAS, and Ctrl-C ends a command quietly."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from types import TracebackType


def prefer_openblas() -> None:
    """Let MLX's CPU backend on Linux find OpenBLAS, where it is installed, before its own slow BLAS.

    The symbols must be global before ``mlx.core`` is first imported, so this runs on import of the package. OpenBLAS is
    then told to use one thread, since ``models/streams.py`` has one for each core, unless OPENBLAS_NUM_THREADS says
    otherwise. ``MLX_FASTVLM_OPENBLAS=0`` turns all this off. A Mac never needs it: MLX uses Metal and Accelerate there.
    """
    if sys.platform != "linux" or os.environ.get("MLX_FASTVLM_OPENBLAS") == "0":
        return
    try:
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
        if "mlx.core" in sys.modules:
            _warn_if_too_late()
        if "OPENBLAS_NUM_THREADS" not in os.environ:
            ctypes.CDLL(None).openblas_set_num_threads(1)
    except (OSError, AttributeError):
        pass  # not installed, or not found in time: MLX takes the BLAS in its wheel


def openblas() -> str | None:
    """The OpenBLAS that this process has loaded, and for which processor it has chosen its kernels; None without."""
    library = ctypes.CDLL(None)
    try:
        config, core = library.openblas_get_config, library.openblas_get_corename
    except AttributeError:
        return None
    config.restype = core.restype = ctypes.c_char_p
    return f"{' '.join(config().decode().split()[:2])}, kernels for {core().decode()}"


def _warn_if_too_late() -> None:
    """Where MLX has bound its own BLAS already: products then take up to 50 times as long."""
    mx = sys.modules["mlx.core"]
    preloaded = "libopenblas" in os.environ.get("LD_PRELOAD", "")
    if not preloaded and mx.default_device().type == mx.DeviceType.cpu:
        warnings.warn(
            "mlx.core was imported before mlx_fastvlm, so MLX does not use the OpenBLAS of this machine and is many "
            "times slower; import mlx_fastvlm first, or set LD_PRELOAD=libopenblas.so.0.",
            stacklevel=4,
        )


def hush_interrupts() -> None:
    """Let Ctrl-C end a command of this package without a traceback while it still imports; later ``cli.run`` does."""
    if not _is_command():
        return
    default = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.stderr.write("interrupted\n")
        else:
            default(kind, error, traceback)

    sys.excepthook = hook


def _is_command() -> bool:
    """Whether the process is ``fastvlm``, ``python -m mlx_fastvlm`` or ``python -m mlx_fastvlm.COMMAND``."""
    words = sys.orig_argv
    module = words[words.index("-m") + 1 :][:1] if "-m" in words else []
    script = os.path.basename(sys.argv[0]) if sys.argv else ""
    return script == "fastvlm" or (bool(module) and module[0].split(".")[0] == __package__)
