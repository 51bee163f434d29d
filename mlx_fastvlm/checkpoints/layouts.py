"""The checkpoint layouts in the wild, as data: how each one names its tensors.

Every foreign layout is renamed to one canonical form, which ``reparameterize.py`` folds into this package's own names:
``vision_tower.*`` as timm names FastViT's parts (folded or training form), ``multi_modal_projector.linear_1/2.*``,
``language_model.*`` and ``lm_head.*``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import VisionConfig

# Apple's names for FastViT's parts -> timm's. Order matters: the longer names come first.
_APPLE_PARTS = (
    (r"\bpatch_embed(\.blocks)?\.", "stem."),
    (r"\bconv_exp\.", "final_conv."),
    (r"\bconvffn\.", "mlp."),
    (r"\bse\.reduce\.", "se.fc1."),
    (r"\bse\.expand\.", "se.fc2."),
    (r"\brbr_conv\.", "conv_kxk."),
    (r"\brbr_scale\.", "conv_scale."),
    (r"\brbr_skip\.", "identity."),
    (r"\blkb_origin\.", "large_conv."),
    (r"\blkb_reparam\.", "reparam_conv."),
    (r"\bpe\.", "pos_enc."),
    (r"\b(layer_scale(?:_[12])?)$", r"\1.gamma"),
)
# This package's linear layers of the tower, which are 1x1 convolutions in every other layout.
POINTWISE = re.compile(r"^vision_tower\..*(pointwise|fc1|fc2)\.weight$")
# A sequence whose even entries are the linear layers (mlp2x_gelu has 0 and 2), or one layer with no number ("linear").
_APPLE_PROJECTOR = (
    (r"\bmm_projector\.(\d+)\.", lambda match: f"multi_modal_projector.linear_{int(match[1]) // 2 + 1}."),
    (r"\bmm_projector\.(?=\w+$)", "multi_modal_projector.linear_1."),
)


@dataclass(frozen=True)
class Layout:
    """How one kind of checkpoint names its tensors.

    Attributes:
        name: what users call it.
        marker: what the names of some of its tensors, and of no other layout's, begin with.
        renames: (pattern, replacement), applied in order with ``re.sub``, so a replacement may be a function.
        numbered: whether the tower is Apple's flat list ``network.N``.
        channels_last: whether convolution weights are (out, height, width, in), not PyTorch's (out, in, height, width).
        folded: whether it is our own form, which needs no folding.
        has_tower: whether it has a vision tower at all.
        has_head: whether a head that is not the embedding is in it.
    """

    name: str
    marker: str
    renames: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = ()
    numbered: bool = False
    channels_last: bool = False
    folded: bool = False
    has_tower: bool = True
    has_head: bool = True


LAYOUTS = (
    Layout(
        "Apple",
        "model.vision_tower.vision_tower.model.",
        (
            (r"^model\.vision_tower\.vision_tower\.model\.", "vision_tower."),
            *_APPLE_PARTS,
            (r"^model\.mm_projector\.", "mm_projector."),
            *_APPLE_PROJECTOR,
            (r"^model\.(embed_tokens|layers|norm)\.", r"language_model.\1."),
        ),
        numbered=True,
    ),
    Layout(
        "transformers",
        "model.vision_tower.timm_model.",
        (
            (r"^model\.vision_tower\.timm_model\.", "vision_tower."),
            (r"^model\.", ""),
        ),
    ),
    # transformers' FastVlmModel, which has no head; a tied model needs none.
    Layout(
        "transformers' FastVlmModel",
        "vision_tower.timm_model.",
        ((r"^vision_tower\.timm_model\.", "vision_tower."),),
        has_head=False,
    ),
    Layout(
        "mlx-vlm",
        "vision_tower.vision_model.",
        (
            (r"^vision_tower\.vision_model\.", "vision_tower."),
            *_APPLE_PARTS,
            *_APPLE_PROJECTOR,
            (r"^language_model\.lm_head\.", "lm_head."),
            (r"^language_model\.model\.", "language_model."),
        ),
        numbered=True,
        channels_last=True,
    ),
    Layout("mlx-fastvlm", "vision_tower.stem.conv.", channels_last=True, folded=True),
    # Apple's export for its iOS app, whose tower is a Core ML package beside the file.
    Layout(
        "Apple's MLX export",
        "multi_modal_projector.linear_0.",
        (
            (r"^multi_modal_projector\.linear_0\.", "multi_modal_projector.linear_1."),
            (r"^language_model\.lm_head\.", "lm_head."),
            (r"^language_model\.model\.", "language_model."),
        ),
        has_tower=False,
    ),
)

# Tensors that inference has no use for: counters, the classification head, rotary tables.
_UNUSED = re.compile(r"num_batches_tracked$|^vision_tower\.head\.|\.rotary_emb\.inv_freq$")


def detect(names: Iterable[str]) -> Layout:
    """The layout with these tensor names; ``ValueError`` where there is none."""
    names = list(names)
    for layout in LAYOUTS:
        if any(name.startswith(layout.marker) for name in names):
            return layout
    example = f", for example {names[0]!r}" if names else ""
    raise ValueError(
        f"No vision tower of FastVLM among the {len(names)} tensors{example}; known layouts are "
        f"{', '.join(layout.name for layout in LAYOUTS)}."
    )


def network_parts(config: VisionConfig) -> list[str]:
    """What each entry of Apple's flat ``network`` list is, in timm's words.

    For every stage: its position convolution, its blocks, and then the downsampling that begins the next stage.
    """
    parts = []
    for stage in range(len(config.layers)):
        if config.downsamples[stage]:
            parts.append(f"stages.{stage}.downsample")
        if config.pos_embs_shapes[stage]:
            parts.append(f"stages.{stage}.pos_emb")
        parts.append(f"stages.{stage}.blocks")
    return parts


def canonical_names(layout: Layout, names: Iterable[str], config: VisionConfig) -> dict[str, str]:
    """Each of a layout's tensor names -> its canonical name, without those that inference does not use."""
    parts = network_parts(config)

    def part(match: re.Match[str]) -> str:
        index = int(match[1])
        return f"vision_tower.{parts[index]}." if index < len(parts) else match[0]

    renamed = {}
    for name in names:
        new = name
        for pattern, replacement in layout.renames:
            new = re.sub(pattern, replacement, new)
        if layout.numbered:
            new = re.sub(r"^vision_tower\.network\.(\d+)\.", part, new)
        if not _UNUSED.search(new):
            renamed[name] = new
    return renamed
