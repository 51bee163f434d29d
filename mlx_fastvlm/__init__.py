"""FastVLM (Apple, CVPR 2025, arXiv 2412.13303) on MLX.

The public names are imported on first use, so ``import mlx_fastvlm`` costs next to nothing.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING

from .startup import hush_interrupts, prefer_openblas

__version__ = "0.1.0"

prefer_openblas()
hush_interrupts()

if TYPE_CHECKING:  # what type checkers and editors see; a test holds it equal to the table below
    from .cache.policy import make_cache as make_cache
    from .cache.prefix import PrefixCache as PrefixCache
    from .cache.prompt import PromptCache as PromptCache
    from .cache.prompt_file import load_prompt_cache as load_prompt_cache
    from .cache.prompt_file import save_prompt_cache as save_prompt_cache
    from .cache.vision import VisionCache as VisionCache
    from .config import FastVlmConfig as FastVlmConfig
    from .config import TextConfig as TextConfig
    from .config import VisionConfig as VisionConfig
    from .conversion.converter import convert as convert
    from .generation.answer import Answer as Answer
    from .generation.answer import GenerationResponse as GenerationResponse
    from .generation.api import generate as generate
    from .generation.api import stream_generate as stream_generate
    from .generation.batch import batch_generate as batch_generate
    from .generation.choices import Decision as Decision
    from .generation.decision import batch_decide as batch_decide
    from .generation.decision import decide as decide
    from .generation.engine import Engine as Engine
    from .generation.options import GenerationOptions as GenerationOptions
    from .generation.session import ChatSession as ChatSession
    from .generation.tensors import GenerateOutput as GenerateOutput
    from .generation.tensors import generate_ids as generate_ids
    from .generation.waiting import astream_generate as astream_generate
    from .models.fastvlm import FastVlmForConditionalGeneration as FastVlmForConditionalGeneration
    from .models.fastvlm import FastVlmModel as FastVlmModel
    from .models.language import Qwen2Model as Qwen2Model
    from .models.outputs import FastVlmCausalLMOutputWithPast as FastVlmCausalLMOutputWithPast
    from .models.outputs import FastVlmModelOutputWithPast as FastVlmModelOutputWithPast
    from .models.pretrained import load as load
    from .models.projector import FastVlmMultiModalProjector as FastVlmMultiModalProjector
    from .models.vision import FastViTHD as FastViTHD
    from .processing.images import load_frames as load_frames
    from .processing.images import load_image as load_image
    from .processing.processor import FastVlmProcessor as FastVlmProcessor
    from .processing.video import load_video as load_video

_HOME = {
    "make_cache": "cache.policy",
    "PromptCache": "cache.prompt",
    "load_prompt_cache": "cache.prompt_file",
    "save_prompt_cache": "cache.prompt_file",
    "VisionCache": "cache.vision",
    "FastVlmConfig": "config",
    "TextConfig": "config",
    "VisionConfig": "config",
    "convert": "conversion.converter",
    "generate": "generation.api",
    "stream_generate": "generation.api",
    "GenerationOptions": "generation.options",
    "batch_generate": "generation.batch",
    "GenerationResponse": "generation.answer",
    "Decision": "generation.choices",
    "decide": "generation.decision",
    "batch_decide": "generation.decision",
    "Engine": "generation.engine",
    "Answer": "generation.answer",
    "PrefixCache": "cache.prefix",
    "ChatSession": "generation.session",
    "GenerateOutput": "generation.tensors",
    "generate_ids": "generation.tensors",
    "astream_generate": "generation.waiting",
    "FastVlmForConditionalGeneration": "models.fastvlm",
    "FastVlmModel": "models.fastvlm",
    "Qwen2Model": "models.language",
    "FastVlmCausalLMOutputWithPast": "models.outputs",
    "FastVlmModelOutputWithPast": "models.outputs",
    "load": "models.pretrained",
    "FastVlmMultiModalProjector": "models.projector",
    "FastViTHD": "models.vision",
    "load_frames": "processing.images",
    "load_image": "processing.images",
    "FastVlmProcessor": "processing.processor",
    "load_video": "processing.video",
}

__all__ = ["__version__", *_HOME]


class _Package(types.ModuleType):
    """Keeps ``mlx_fastvlm.generate`` the function, though importing the submodule of that name would rebind it."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


if not TYPE_CHECKING:  # or a type checker would believe in any name

    def __getattr__(name):
        if name not in _HOME:
            raise AttributeError(f"module 'mlx_fastvlm' has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)


sys.modules[__name__].__class__ = _Package
