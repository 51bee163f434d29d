"""The way back: this package's form -> what transformers' ``FastVlmForConditionalGeneration.from_pretrained`` loads."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from tokenizers import AddedToken, Tokenizer

from ..files import write_json
from ..processing.marks import IMAGE_MARK
from ..processing.saving import checkpoint_template, write_processor
from .layouts import POINTWISE
from .reparameterize import BATCH_NORM_EPS
from .vocabulary import resized_rows

if TYPE_CHECKING:
    from ..config import FastVlmConfig
    from ..processing.processor import FastVlmProcessor
    from .weights import Weights

# Our names -> timm's, for a tower whose branches are merged. What is a linear layer here is a 1x1 convolution there.
_RENAMES = (
    (r"^vision_tower\.stem\.conv\.", "vision_tower.stem.0.reparam_conv."),
    (r"^vision_tower\.stem\.depthwise\.", "vision_tower.stem.1.reparam_conv."),
    (r"^vision_tower\.stem\.pointwise\.", "vision_tower.stem.2.reparam_conv."),
    (r"\.downsample\.depthwise\.", ".downsample.proj.0.reparam_conv."),
    (r"\.downsample\.se\.", ".downsample.proj.0.se."),
    (r"\.downsample\.pointwise\.", ".downsample.proj.1.reparam_conv."),
    (r"\.pos_emb\.", ".pos_emb.reparam_conv."),
    (r"\.token_mixer\.(weight|bias)$", r".token_mixer.reparam_conv.\1"),
    (r"\.mlp\.conv\.", ".mlp.conv.conv."),
    (r"^vision_tower\.final_conv\.depthwise\.", "vision_tower.final_conv.reparam_conv."),
    (r"^vision_tower\.", "model.vision_tower.timm_model."),
    (r"^(language_model|multi_modal_projector)\.", r"model.\1."),
)

PAD_TO = 64  # transformers' conversion rounds the vocabulary up to a multiple of this, two more tokens counted in
SPREAD = 1e-5  # and draws the new rows from the old ones' distribution, with this share of their variance

# Images first, then the text: what the released models were trained on.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- for part in message['content'] if part['type'] == 'image' -%}
{{- '<image>' -}}
{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}
{{- '\\n' + part['text'] -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def to_transformers(
    weights: Weights, config: FastVlmConfig, processor: FastVlmProcessor | None, folder: Path
) -> tuple[Weights, dict[str, Any]]:
    """Weights and ``config.json`` in transformers' layout; the processor's files, if there is one, go to ``folder``.

    transformers finds images by a token of its own, ``<image>``. A checkpoint that has none (Apple's) gets one, and
    an embedding with room for it. Images are cropped there, so the config says so.

    Raises:
        ValueError: for what transformers does not have (see :func:`check_transformers`).
    """
    check_transformers(config, weights.modules)
    if processor is None:
        if not 0 <= config.image_token_id < config.text_config.vocab_size:
            raise ValueError(
                f"The image placeholder {config.image_token_id} is not a token, and transformers needs one; pass the "
                "processor, to which it is added."
            )
        return replace(weights, tensors=timm_form(weights.tensors)), config.to_dict()
    tensors = dict(weights.tensors)
    tokenizer = Tokenizer.from_str(processor.tokenizer.to_str())
    tokenizer.add_special_tokens([AddedToken(IMAGE_MARK, normalized=False, special=True)])
    image_token = tokenizer.token_to_id(IMAGE_MARK)
    assert image_token is not None  # it is there now, at the latest
    vocabulary = config.text_config.vocab_size
    if config.image_token_id != image_token:
        vocabulary = math.ceil((vocabulary + 2) / PAD_TO) * PAD_TO
        for name in ("language_model.embed_tokens.weight", "lm_head.weight"):
            if name in tensors:
                tensors[name] = resized_rows(tensors[name], vocabulary, SPREAD)
    config = replace(
        config,
        image_token_id=image_token,
        image_aspect_ratio="crop",
        text_config=replace(config.text_config, vocab_size=vocabulary),
    )
    write_processor(folder, tokenizer, processor, checkpoint_template(processor, CHAT_TEMPLATE))
    write_json(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": IMAGE_MARK,
            "num_additional_image_tokens": 0,
            "patch_size": config.vision_config.patch_size,
            "vision_feature_select_strategy": "full",
        },
    )
    return replace(weights, tensors=timm_form(tensors)), config.to_dict()


def check_transformers(config: FastVlmConfig, modules: dict[str, dict[str, Any]]) -> None:
    """``ValueError`` for projectors that transformers' FastVLM does not know, and towers that no file tells timm.

    And for quantized modules.
    """
    if modules:
        raise ValueError(
            "The weights are quantized, which transformers' layout is not; add --dequantize, or write layout mlx."
        )
    if config.projector_layers != 2:
        raise ValueError(
            f"transformers' FastVLM has no projector {config.projector_type!r}, only 'mlp2x_gelu'; write layout mlx."
        )
    if not config.vision_config.timm_has_its_positions:
        raise ValueError(
            f"A file can't describe to timm the position convolutions {config.vision_config.pos_embs_shapes} "
            "(pos_embs_shapes); write layout mlx."
        )


def timm_form(tensors: dict[str, mx.array]) -> dict[str, mx.array]:
    """The tensors under transformers' names, in PyTorch's order, with the norms and scales that were folded away."""
    renamed = {}
    for name, tensor in tensors.items():
        if POINTWISE.search(name):
            tensor = tensor[:, None, None, :]
        if tensor.ndim == 4:
            tensor = tensor.transpose(0, 3, 1, 2)
        new = name
        for pattern, replacement in _RENAMES:
            new = re.sub(pattern, replacement, new)
        renamed[new] = tensor
        if new.endswith(".mlp.conv.conv.weight"):
            renamed |= _neutral(new.removesuffix(".mlp.conv.conv.weight"), tensor.shape[0], tensor.dtype, tensors)
    return renamed


def _neutral(block: str, width: int, dtype: mx.Dtype, tensors: dict[str, mx.array]) -> dict[str, mx.array]:
    """A block's BatchNorm and layer scales that change nothing."""
    attention = block.replace("model.vision_tower.timm_model.", "vision_tower.") + ".norm.weight" in tensors
    scales = ("layer_scale_1", "layer_scale_2") if attention else ("layer_scale",)
    norm = f"{block}.mlp.conv.bn"
    return {
        f"{norm}.weight": mx.ones((width,), dtype),
        f"{norm}.bias": mx.zeros((width,), dtype),
        f"{norm}.running_mean": mx.zeros((width,), dtype),
        f"{norm}.running_var": mx.full((width,), 1 - BATCH_NORM_EPS, dtype),
        f"{norm}.num_batches_tracked": mx.array(0, mx.int64),
        **{f"{block}.{scale}.gamma": mx.ones((width, 1, 1), dtype) for scale in scales},
    }
