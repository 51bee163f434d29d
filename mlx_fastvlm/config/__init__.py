"""What a checkpoint's ``config.json`` says, read from any layout into one form.

Apple's files (``model_type: llava_qwen2``) keep the decoder's fields at the top level and name the vision tower;
transformers' (``fast_vlm``) nest a ``text_config`` and a timm ``vision_config``. Both become :class:`FastVlmConfig`.
"""

from .fastvlm import FastVlmConfig
from .keys import check_keys
from .text import TextConfig
from .values import as_ids
from .vision import VisionConfig

__all__ = ["FastVlmConfig", "TextConfig", "VisionConfig", "as_ids", "check_keys"]
