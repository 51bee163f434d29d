"""FastVLM (Apple, CVPR 2025, arXiv 2412.13303) on MLX.

The public names are imported on first use, so ``import mlx_fastvlm`` costs next to nothing.
"""

import ctypes
import importlib
import os
import sys
import types

__version__ = "0.1.0"


def _prefer_openblas():
    """Let MLX's CPU backend on Linux find OpenBLAS, where it is installed, before its own slow BLAS.

    The symbols must be global before ``mlx.core`` is first imported, so this runs on import of the package. OpenBLAS is
    then told to use one thread, since ``streams.py`` has one for each core, unless OPENBLAS_NUM_THREADS says otherwise.
    ``MLX_FASTVLM_OPENBLAS=0`` turns all this off. A Mac never needs it: MLX uses Metal and Accelerate there.
    """
    if sys.platform != "linux" or os.environ.get("MLX_FASTVLM_OPENBLAS") == "0":
        return
    try:
        if "mlx.core" not in sys.modules:
            ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
        if "OPENBLAS_NUM_THREADS" not in os.environ:
            ctypes.CDLL(None).openblas_set_num_threads(1)
    except (OSError, AttributeError):
        pass  # not installed, or not found in time: MLX takes the BLAS in its wheel


def _hush_interrupts():
    """Let Ctrl-C end a command of this package without a traceback while it still imports; later ``cli.run`` does."""
    words = sys.orig_argv
    module = words[words.index("-m") + 1 :][:1] if "-m" in words else []
    if not (module and module[0].startswith(f"{__name__}.")) and os.path.basename(sys.argv[0]) != "fastvlm":
        return
    default = sys.excepthook

    def hook(kind, error, traceback):
        if issubclass(kind, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
        else:
            default(kind, error, traceback)

    sys.excepthook = hook


_prefer_openblas()
_hush_interrupts()

_HOME = {
    "FastVlmConfig": "config",
    "VisionConfig": "config",
    "TextConfig": "config",
    "FastViTHD": "models.vision",
    "FastVlmMultiModalProjector": "models.projector",
    "Qwen2Model": "models.language",
    "FastVlmModel": "models.fastvlm",
    "FastVlmForConditionalGeneration": "models.fastvlm",
    "FastVlmModelOutputWithPast": "models.outputs",
    "FastVlmCausalLMOutputWithPast": "models.outputs",
    "load_image": "processing.images",
    "load_frames": "processing.images",
    "FastVlmProcessor": "processing.processor",
    "load": "models.pretrained",
    "convert": "conversion.converter",
    "make_cache": "cache.policy",
    "PromptCache": "cache.prompt",
    "save_prompt_cache": "cache.prompt",
    "load_prompt_cache": "cache.prompt",
    "VisionCache": "cache.vision",
    "GenerationOptions": "generation.options",
    "batch_generate": "generation.batch",
    "generate": "generation.api",
    "stream_generate": "generation.api",
    "GenerationResponse": "generation.api",
    "ChatSession": "generation.session",
}

__all__ = ["__version__", *_HOME]


class _Package(types.ModuleType):
    """Keeps ``mlx_fastvlm.generate`` the function, though importing the submodule of that name would rebind it."""

    def __setattr__(self, name, value):
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'mlx_fastvlm' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)


sys.modules[__name__].__class__ = _Package
