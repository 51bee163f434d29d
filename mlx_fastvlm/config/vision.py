"""The vision tower's configuration."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import short
from .keys import check_keys
from .values import MOST, check_kernel, check_number, check_whole, pick, without

STAGEWISE = ("embed_dims", "mlp_ratios", "token_mixers", "pos_embs_shapes")  # lists with an entry for each stage


@dataclass
class VisionConfig:
    """Shape of a FastViTHD tower (FastVLM paper, section 3.2; timm's ``fastvit_mci3``).

    Widths and depths are listed stem side first. The tower maps an image of (height, width) pixels, multiples of
    :attr:`patch_size`, to (height / patch_size) x (width / patch_size) tokens of :attr:`hidden_size` channels.

    Attributes:
        layers: blocks of each stage.
        embed_dims: channels of each stage; twice the one before's, or the same.
        mlp_ratios: width of each stage's perceptrons, in its channels.
        token_mixers: "repmixer" or "attention", by stage.
        pos_embs_shapes: height and width of each stage's position convolution in pixels, the same odd number, or None.
        repmixer_kernel_size, down_patch_size: sides of the token mixers' and the downsamplings' kernels, in pixels.
        down_stride: only 2.
        lkc_use_act: whether a GELU follows the downsamplings' large kernels, as in the released models.
        cls_ratio: channels of the features, in the last stage's: 1 or 2.
        se_downsamples: of each stage, whether its downsampling has a squeeze-and-excitation; in FastViTHD none has.
        image_size: side of the square that images are made into, in pixels; a multiple of :attr:`patch_size`.

    Raises:
        ValueError: for a tower that FastViTHD can't be.
    """

    layers: list[int] = field(default_factory=lambda: [2, 12, 24, 4, 2])
    embed_dims: list[int] = field(default_factory=lambda: [96, 192, 384, 768, 1536])
    mlp_ratios: list[float] = field(default_factory=lambda: [4, 4, 4, 4, 4])
    token_mixers: list[str] = field(
        default_factory=lambda: ["repmixer", "repmixer", "repmixer", "attention", "attention"]
    )
    pos_embs_shapes: list[list[int] | None] = field(default_factory=lambda: [None, None, None, [7, 7], [7, 7]])
    repmixer_kernel_size: int = 3
    down_patch_size: int = 7
    down_stride: int = 2
    lkc_use_act: bool = True
    cls_ratio: float = 2.0
    image_size: int = 1024
    se_downsamples: list[bool] = None  # type: ignore[assignment]  # __post_init__ sets it

    def __post_init__(self) -> None:
        self._check_stages()
        self._check_gates()
        for depth, width, ratio in zip(self.layers, self.embed_dims, self.mlp_ratios):
            self._check_blocks(depth, width, ratio)
        if sum(self.layers) > MOST["layers"]:
            raise ValueError(f"vision_config: at most {MOST['layers']} layers are supported, got {sum(self.layers)}.")
        self._check_kernels()
        check_whole("vision_config", "image_size", self.image_size, MOST["pixels"])
        self._check_widths()
        if not isinstance(self.lkc_use_act, bool):
            raise ValueError(f"vision_config: lkc_use_act must be true or false, got {short(self.lkc_use_act)}.")
        if self.down_stride != 2 or self.cls_ratio not in (1, 2):
            raise ValueError("vision_config: only down_stride 2 and cls_ratio 1 or 2 are supported.")
        if self.hidden_size < 16:
            raise ValueError(
                f"vision_config: the last of embed_dims x cls_ratio must be at least 16, got {self.hidden_size}."
            )
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size must be a multiple of {self.patch_size}, got {self.image_size}.")

    def _check_stages(self) -> None:
        for name in ("layers", *STAGEWISE):
            if not isinstance(getattr(self, name), (list, tuple)):
                raise ValueError(f"vision_config: {name} must be a list, got {short(getattr(self, name))}.")
        stages = len(self.layers)
        check_whole("vision_config", "the number of stages", stages, 16)
        for name in STAGEWISE:
            if len(getattr(self, name)) != stages:
                raise ValueError(f"vision_config: {name} has {len(getattr(self, name))} entries for {stages} stages.")

    def _check_gates(self) -> None:
        if self.se_downsamples is None:
            self.se_downsamples = [False] * len(self.layers)
        gates = self.se_downsamples
        if not isinstance(gates, (list, tuple)) or len(gates) < len(self.layers):
            raise ValueError(
                f"vision_config: se_downsamples must be a list of {len(self.layers)} values, got {short(gates)}."
            )
        self.se_downsamples = [bool(gate) for gate in gates[: len(self.layers)]]  # timm's tuples may be longer

    def _check_blocks(self, depth: Any, width: Any, ratio: Any) -> None:
        check_whole("vision_config", "layers", depth, MOST["layers"])
        check_whole("vision_config", "embed_dims", width, MOST["width"])
        check_number("vision_config", "mlp_ratios", ratio)
        check_whole("vision_config", "embed_dims x mlp_ratios", int(width * ratio), MOST["width"])

    def _check_kernels(self) -> None:
        check_kernel("vision_config", "repmixer_kernel_size", self.repmixer_kernel_size)
        check_kernel("vision_config", "down_patch_size", self.down_patch_size, least=3)
        for shape in self.pos_embs_shapes:
            if shape is None:
                continue
            if not (isinstance(shape, (list, tuple)) and len(shape) == 2 and shape[0] == shape[1]):
                raise ValueError(f"vision_config: pos_embs_shapes must hold equal pairs or null, got {short(shape)}.")
            check_kernel("vision_config", "pos_embs_shapes", shape[0])

    def _check_widths(self) -> None:
        for before, after in zip(self.embed_dims, self.embed_dims[1:]):
            if after not in (before, 2 * before):
                raise ValueError(
                    f"vision_config: embed_dims must double or stay from stage to stage, got {self.embed_dims}."
                )
        for width, mixer in zip(self.embed_dims, self.token_mixers):
            if mixer not in ("repmixer", "attention"):
                raise ValueError(f"vision_config: unknown token mixer {mixer!r}; use 'repmixer' or 'attention'.")
            if mixer == "attention" and width % self.head_dim:
                raise ValueError(f"vision_config: an attention stage's width must be a multiple of 32, got {width}.")

    head_dim = 32  # FastViT's attention heads, at every width

    @property
    def downsamples(self) -> list[bool]:
        """Per stage, whether it halves the image first: where the width changes (the first never does)."""
        return [before != after for before, after in zip(self.embed_dims[:1] + self.embed_dims, self.embed_dims)]

    @property
    def hidden_size(self) -> int:
        """Channels of the image features (3072 in the released models)."""
        return int(self.embed_dims[-1] * self.cls_ratio)

    @property
    def patch_size(self) -> int:
        """Pixels per token along one side (64): the stem's stride 4 times 2 for each downsampling."""
        return int(4 * 2 ** sum(self.downsamples))

    @property
    def timm_has_its_positions(self) -> bool:
        """Whether a file can tell timm the position convolutions: its own ones, or none. Others are code there."""
        return not any(self.pos_embs_shapes) or self.pos_embs_shapes == _default(len(self.layers))["pos_embs_shapes"]

    def model_args(self) -> dict[str, Any]:
        """What differs from ``fastvit_mci3``, in timm's words as far as it has any; without :attr:`image_size`."""
        default = {**_default(len(self.layers)), "se_downsamples": [False] * len(self.layers)}
        values = {key: value for key, value in asdict(self).items() if value != default[key]}
        if "pos_embs_shapes" in values and not any(self.pos_embs_shapes):
            values["pos_embs"] = values.pop("pos_embs_shapes")
        return without(values, ["image_size"])


def read_vision_config(vision: dict[str, Any]) -> VisionConfig:
    """A tower's shape from Apple's ``vision_config`` or from transformers' timm wrapper (``model_args``).

    Raises:
        ValueError: for a tower that is not FastViTHD, or that this package doesn't compute.
    """
    check_keys("vision_config", vision)
    args: Any = vision.get("model_args") or {}
    check_keys("model_args", args)
    architecture = vision.get("architecture", "fastvit_mci3")
    if architecture != "fastvit_mci3":
        raise ValueError(f"vision tower {architecture!r} is not supported; FastVLM's is 'fastvit_mci3' (FastViTHD).")
    values = {key: value for key, value in {**vision, **args}.items() if value is not None}
    if "lkc_use_act" in args and args["lkc_use_act"] is None:
        values["lkc_use_act"] = False  # to timm, null is no
    if isinstance(values.get("pos_embs"), list):
        values.setdefault("pos_embs_shapes", values["pos_embs"])
    if isinstance(values.get("layers"), list):
        values = {**_default(len(values["layers"])), **values}
    config = pick(VisionConfig, values)
    _check_downsamples(config, vision.get("downsamples"), args.get("downsamples"))
    stated = vision.get("hidden_size")
    if "architecture" in vision and stated is not None and stated != config.hidden_size:
        raise ValueError(
            f"vision_config says hidden_size {stated}, but embed_dims {config.embed_dims} give {config.hidden_size}."
        )
    return config


_DEFAULT = asdict(VisionConfig())


def _default(stages: int) -> dict[str, Any]:
    """``fastvit_mci3``'s shape for a tower of so many stages.

    timm reads its lists from the front, so they may be longer; but it takes the last width of all for the features.
    """
    default = without(_DEFAULT, ["se_downsamples"])
    return {**default, **{name: _DEFAULT[name][:stages] for name in STAGEWISE if name != "embed_dims"}}


def _check_downsamples(config: VisionConfig, apples: Any, timms: Any) -> None:
    """``ValueError`` where a stage is to halve the image without doubling its width.

    timm's list says it of each stage, Apple's of what comes after each.
    """
    for asked in (timms, apples and [False, *apples]):
        if any(halves and not doubles for halves, doubles in zip(asked or [], config.downsamples)):
            raise ValueError(
                "vision_config: downsamples asks to halve the image where embed_dims stay as wide, which is not "
                "supported; FastViTHD doubles the width there."
            )
