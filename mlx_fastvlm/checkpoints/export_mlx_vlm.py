"""The way to mlx-vlm and mlx-swift-lm (iPhone, iPad, Vision Pro): Apple's names and config, channels last.

Both read one layout: the tower under Apple's names with BatchNorms and layer scales in it, the decoder below
``language_model.model``, and a ``config.json`` of type ``llava_qwen2`` whose decoder's fields are at the top.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from tokenizers import Tokenizer

from ..config.values import without
from ..files import write_json
from ..processing.saving import checkpoint_template, preprocessor_config, write_processor
from .layouts import POINTWISE, network_parts
from .quantization import config_entry
from .reparameterize import BATCH_NORM_EPS

if TYPE_CHECKING:
    from ..config import FastVlmConfig, VisionConfig
    from ..processing.processor import FastVlmProcessor
    from .weights import Weights

IMAGE_TOKEN_INDEX = -200  # both programs' processors write this one, whatever the config says
EOS_TOKEN_ID = 151645  # Qwen2's <|im_end|>; mlx-swift-lm reads no config without one
MAX_LENGTH = 8192  # of the released models' prompts, images included; mlx-vlm cuts longer ones
PROJECTION_DIM = 768  # of the classification head, which neither program reads the output of

_TOWER = "vision_tower.vision_model."
_RENAMES = (
    (r"^vision_tower\.stem\.conv\.", _TOWER + "patch_embed.blocks.0.reparam_conv."),
    (r"^vision_tower\.stem\.depthwise\.", _TOWER + "patch_embed.blocks.1.reparam_conv."),
    (r"^vision_tower\.stem\.pointwise\.", _TOWER + "patch_embed.blocks.2.reparam_conv."),
    (r"\.downsample\.depthwise\.", ".downsample.proj.0.lkb_reparam."),
    (r"\.downsample\.pointwise\.", ".downsample.proj.1.reparam_conv."),
    (r"\.pos_emb\.", ".pos_emb.reparam_conv."),
    (r"\.token_mixer\.(weight|bias)$", r".token_mixer.reparam_conv.\1"),
    (r"\.mlp\.conv\.", ".convffn.conv.conv."),
    (r"\.mlp\.(fc[12])\.", r".convffn.\1."),
    (r"^vision_tower\.final_conv\.depthwise\.", _TOWER + "conv_exp.reparam_conv."),
    (r"^vision_tower\.final_conv\.se\.fc1\.", _TOWER + "conv_exp.se.reduce."),
    (r"^vision_tower\.final_conv\.se\.fc2\.", _TOWER + "conv_exp.se.expand."),
    (r"^lm_head\b", "language_model.lm_head"),
)
_STAGE = re.compile(r"^vision_tower\.(stages\.\d+\.(?:downsample|pos_emb|blocks))\.")

# As the released models' template, but for contents in parts too, which mlx-swift-lm sends.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if not loop.first -%}{{- '\\n' -}}{%- endif -%}
{%- if part['type'] == 'image' -%}{{- '<image>' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def to_mlx_vlm(
    weights: Weights, config: FastVlmConfig, processor: FastVlmProcessor | None, folder: Path
) -> tuple[Weights, dict[str, Any]]:
    """Weights and ``config.json`` in mlx-vlm's layout; the processor's files, if there is one, go to ``folder``.

    Both programs pad images to a square, so the config says so.

    Raises:
        ValueError: for what they can't compute (see :func:`check_mlx_vlm`).
    """
    check_mlx_vlm(config, weights.modules)
    rename = _namer(config)
    tensors = mlx_vlm_form(weights.tensors, config)
    modules = {rename(name): how for name, how in weights.modules.items()}
    eos = set(config.eos_token_id)
    if processor is not None:
        tokenizer = Tokenizer.from_str(processor.tokenizer.to_str())
        write_processor(folder, tokenizer, processor, checkpoint_template(processor, CHAT_TEMPLATE), "FastVLMProcessor")
        images = preprocessor_config(processor) | {
            "image_processor_type": "FastVLMImageProcessor",
            "processor_class": "FastVLMProcessor",  # mlx-swift-lm chooses its processor by this
        }
        write_json(folder / "preprocessor_config.json", images)
        end = tokenizer.token_to_id("<|im_end|>")
        eos = {end} if end in processor.eos_token_ids else set(processor.eos_token_ids)
    return replace(weights, tensors=tensors, modules=modules), _config(config, modules, eos)


def check_mlx_vlm(config: FastVlmConfig, modules: dict[str, dict[str, Any]]) -> None:
    """``ValueError`` for what mlx-vlm and mlx-swift-lm don't compute, by the field's name."""
    text, vision = config.text_config, config.vision_config
    own_heads = text.head_dim * text.num_attention_heads != text.hidden_size
    odd_projector = config.projector_layers > 1 and config.projector_hidden_act != "gelu"
    faults = {
        "mm_projector_type 'identity'": config.projector_layers == 0,
        f"projector_hidden_act {config.projector_hidden_act!r}": odd_projector,
        f"head_dim {text.head_dim}": own_heads,
        f"sliding_window {text.sliding_window}": text.sliding_window is not None,
        f"hidden_act {text.hidden_act!r}": text.hidden_act not in ("silu", "swish"),
        f"rope_type {(text.rope_scaling or {}).get('rope_type')!r}": text.rope_scaling is not None,
        "lkc_use_act false": not vision.lkc_use_act,
        "se_downsamples": any(vision.se_downsamples),
    }
    for name, there in faults.items():
        if there:
            raise ValueError(f"mlx-vlm and mlx-swift-lm don't have {name}; write layout mlx.")
    if any(not name.startswith(("language_model.", "lm_head")) for name in modules):
        raise ValueError(
            "Tower and projector are quantized, which mlx-vlm's layout leaves in full precision; quantize without "
            "--q-vision, or write layout mlx."
        )


def mlx_vlm_form(tensors: dict[str, mx.array], config: FastVlmConfig) -> dict[str, mx.array]:
    """The tensors under mlx-vlm's names, channels last, with the norms, scales and biases that it has besides."""
    rename = _namer(config)
    out = {}
    for name, tensor in tensors.items():
        out[rename(name)] = tensor[:, None, None, :] if POINTWISE.search(name) else tensor
    for name, tensor in list(out.items()):
        if name.endswith(".convffn.conv.conv.weight"):
            block = name.removesuffix(".convffn.conv.conv.weight")
            out |= _neutral(block, tensor.shape[0], tensor.dtype, attention=f"{block}.norm.weight" in out)
        elif re.search(r"\.self_attn\.[qkv]_proj\.weight$", name):
            norm = out["language_model.model.norm.weight"]
            out.setdefault(name.removesuffix("weight") + "bias", mx.zeros((tensor.shape[0],), norm.dtype))
        elif re.match(r"mm_projector\..*weight$", name):
            out.setdefault(name.removesuffix("weight") + "bias", mx.zeros((tensor.shape[0],), tensor.dtype))
    stem = out[_TOWER + "patch_embed.blocks.0.reparam_conv.weight"]
    out[_TOWER + "head.proj"] = mx.zeros((config.vision_config.hidden_size, _projection(config)), stem.dtype)
    return out


def _projection(config: FastVlmConfig) -> int:
    read = config.extra.get("vision_config")
    return (read.get("projection_dim") if isinstance(read, dict) else None) or PROJECTION_DIM


def _neutral(block: str, width: int, dtype: mx.Dtype, attention: bool) -> dict[str, mx.array]:
    """A block's BatchNorm and layer scales that change nothing."""
    norm = f"{block}.convffn.conv.bn"
    return {
        f"{norm}.weight": mx.ones((width,), dtype),
        f"{norm}.bias": mx.zeros((width,), dtype),
        f"{norm}.running_mean": mx.zeros((width,), dtype),
        f"{norm}.running_var": mx.full((width,), 1 - BATCH_NORM_EPS, dtype),
        **{
            f"{block}.{scale}": mx.ones((1, 1, width), dtype)
            for scale in (("layer_scale_1", "layer_scale_2") if attention else ("layer_scale",))
        },
    }


def _namer(config: FastVlmConfig) -> Callable[[str], str]:
    """Our names -> mlx-vlm's, of tensors and modules."""
    numbers = {part: number for number, part in enumerate(network_parts(config.vision_config))}
    single = config.projector_layers == 1 and config.projector_type == "linear"

    def rename(name: str) -> str:
        if name.startswith("language_model."):
            return "language_model.model." + name.removeprefix("language_model.")
        if projector := re.match(r"multi_modal_projector\.linear_(\d+)", name):
            number = "" if single else f".{2 * (int(projector[1]) - 1)}"
            return f"mm_projector{number}{name[projector.end() :]}"
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        return _STAGE.sub(lambda stage: f"{_TOWER}network.{numbers[stage[1]]}.", name)

    return rename


def _config(config: FastVlmConfig, modules: dict[str, dict[str, Any]], eos: set[int]) -> dict[str, Any]:
    """``config.json``; the keys that mlx-swift-lm demands, the ones that mlx-vlm reads, and the source's others."""
    text = config.text_config.to_dict()
    read_text = config.extra.get("text_config") or {}
    written = {
        "architectures": ["LlavaQwen2ForCausalLM"],
        "model_type": "llava_qwen2",
        **{
            key: read_text[key]
            for key in ("bos_token_id", "attention_dropout", "initializer_range")
            if key in read_text
        },
        **text,
        "tie_word_embeddings": config.tie_word_embeddings,
        "eos_token_id": min(eos, default=EOS_TOKEN_ID),
        "image_token_index": IMAGE_TOKEN_INDEX,
        "image_aspect_ratio": "pad",
        "mm_vision_tower": f"mobileclip_l_{config.vision_config.image_size}",
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_projector_type": config.projector_type,
        "mm_use_im_start_end": False,
        "tokenizer_model_max_length": config.extra.get("tokenizer_model_max_length", MAX_LENGTH),
        "tokenizer_padding_side": "right",
        "torch_dtype": config.dtype,
        "vision_config": _vision(config.vision_config, _projection(config)),
        "quantization": config_entry(modules),
        "quantization_config": config_entry(modules),
    }
    kept = without(config.extra, {*written, *_NOT_APPLES})
    return kept | {key: value for key, value in written.items() if value is not None}


_TEXT_KEYS = ("bos_token_id", "attention_dropout", "initializer_range")
_NOT_APPLES = {
    "auto_map",
    "dtype",
    "image_seq_length",
    "image_token_id",
    "layer_types",
    "multimodal_projector_bias",
    "projector_hidden_act",
    "rope_parameters",
    "rope_scaling",
    "text_config",
    "vision_feature_layer",
    "vision_feature_select_strategy",
}


def _vision(config: VisionConfig, projection: int) -> dict[str, Any]:
    ratios = [int(ratio) if ratio == int(ratio) else ratio for ratio in config.mlp_ratios]
    return {
        "cls_ratio": float(config.cls_ratio),
        "down_patch_size": config.down_patch_size,
        "down_stride": config.down_stride,
        "downsamples": [*config.downsamples[1:], True],  # Apple's list says it of what follows a stage
        "embed_dims": list(config.embed_dims),
        "hidden_size": 1024,  # these three describe no part of the tower; mlx-swift-lm asks for them
        "intermediate_size": 3072,
        "num_classes": 1000,
        "image_size": config.image_size,
        "layer_scale_init_value": 1e-5,
        "layers": list(config.layers),
        "mlp_ratios": ratios,
        "patch_size": config.patch_size,
        "pos_embs_shapes": [list(shape) if shape else None for shape in config.pos_embs_shapes],
        "projection_dim": projection,
        "repmixer_kernel_size": config.repmixer_kernel_size,
        "token_mixers": list(config.token_mixers),
    }
