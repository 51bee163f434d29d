"""What a checkpoint's ``config.json`` says, read from any layout into one form.

Apple's files (``model_type: llava_qwen2``) keep the decoder's fields at the top level and name the vision tower;
transformers' (``fast_vlm``) nest a ``text_config`` and a timm ``vision_config``. Both become :class:`FastVlmConfig`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .errors import short
from .files import read_json
from .hub import find_checkpoint

LLAVA_IMAGE_TOKEN = -200  # LLaVA's placeholder (IMAGE_TOKEN_INDEX): no real token, so it can clash with none


# What no model comes near. A stranger's config could ask for a trillion layers, and making them would take forever.
_MOST = {"layers": 1000, "width": 2**20, "vocabulary": 2**24, "pixels": 4096}


def _whole(owner: str, name: str, value: Any, most: int):
    """``ValueError`` unless a setting is a whole number from 1 to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{owner}: {name} must be a whole number from 1 to {most}, got {short(value)}.")


def _number(owner: str, name: str, value: Any):
    """``ValueError`` unless a setting is a positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
        raise ValueError(f"{owner}: {name} must be a positive number, got {short(value)}.")


@dataclass
class VisionConfig:
    """Shape of a FastViTHD tower (FastVLM paper, section 3.2; timm's ``fastvit_mci3``).

    Widths and depths are listed stem side first. The tower maps a picture of (height, width) pixels, multiples of
    :attr:`patch_size`, to (height / patch_size) x (width / patch_size) tokens of :attr:`hidden_size` channels.

    Attributes:
        layers: blocks of each stage.
        embed_dims: channels of each stage; twice the one before's, or the same.
        mlp_ratios: width of each stage's perceptrons, in its channels.
        token_mixers: "repmixer" or "attention", by stage.
        pos_embs_shapes: height and width of each stage's position convolution in pixels, or None.
        repmixer_kernel_size, down_patch_size: sides of the token mixers' and the downsamplings' kernels, in pixels.
        down_stride: only 2.
        cls_ratio: channels of the features, in the last stage's: 1 or 2.
        image_size: side of the square that pictures are made into, in pixels; a multiple of :attr:`patch_size`.

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
    cls_ratio: float = 2.0
    image_size: int = 1024

    def __post_init__(self):
        for name in ("layers", "embed_dims", "mlp_ratios", "token_mixers", "pos_embs_shapes"):
            if not isinstance(getattr(self, name), (list, tuple)):
                raise ValueError(f"vision_config: {name} must be a list, got {short(getattr(self, name))}.")
        stages = len(self.layers)
        _whole("vision_config", "the number of stages", stages, 16)
        for name in ("embed_dims", "mlp_ratios", "token_mixers", "pos_embs_shapes"):
            if len(getattr(self, name)) != stages:
                raise ValueError(f"vision_config: {name} has {len(getattr(self, name))} entries for {stages} stages.")
        for depth, width, ratio in zip(self.layers, self.embed_dims, self.mlp_ratios):
            _whole("vision_config", "layers", depth, _MOST["layers"])
            _whole("vision_config", "embed_dims", width, _MOST["width"])
            _number("vision_config", "mlp_ratios", ratio)
        for name in ("repmixer_kernel_size", "down_patch_size"):
            _whole("vision_config", name, getattr(self, name), 63)
        for shape in self.pos_embs_shapes:
            if shape is not None and not (isinstance(shape, (list, tuple)) and len(shape) == 2):
                raise ValueError(f"vision_config: pos_embs_shapes must hold pairs or null, got {short(shape)}.")
            for side in shape or ():
                _whole("vision_config", "pos_embs_shapes", side, 63)
        _whole("vision_config", "image_size", self.image_size, _MOST["pixels"])
        for mixer in self.token_mixers:
            if mixer not in ("repmixer", "attention"):
                raise ValueError(f"vision_config: unknown token mixer {mixer!r}; use 'repmixer' or 'attention'.")
        for before, after in zip(self.embed_dims, self.embed_dims[1:]):
            if after not in (before, 2 * before):
                raise ValueError(
                    f"vision_config: embed_dims must double or stay from stage to stage, got {self.embed_dims}."
                )
        for width, mixer in zip(self.embed_dims, self.token_mixers):
            if mixer == "attention" and width % self.head_dim:
                raise ValueError(f"vision_config: an attention stage's width must be a multiple of 32, got {width}.")
        if self.down_stride != 2 or self.cls_ratio not in (1, 2):
            raise ValueError("vision_config: only down_stride 2 and cls_ratio 1 or 2 are supported.")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size must be a multiple of {self.patch_size}, got {self.image_size}.")

    head_dim = 32  # FastViT's attention heads, at every width

    @property
    def downsamples(self) -> list[bool]:
        """Per stage, whether it halves the picture first: where the width changes (the first never does)."""
        return [before != after for before, after in zip(self.embed_dims[:1] + self.embed_dims, self.embed_dims)]

    @property
    def hidden_size(self) -> int:
        """Channels of the image features (3072 in the released models)."""
        return int(self.embed_dims[-1] * self.cls_ratio)

    @property
    def patch_size(self) -> int:
        """Pixels per token along one side (64): the stem's stride 4 times 2 for each downsampling."""
        return 4 * 2 ** sum(self.downsamples)


@dataclass
class TextConfig:
    """Shape of the Qwen2 decoder; names and defaults are transformers' ``Qwen2Config`` as FastVLM-7B sets it.

    ``head_dim`` is ``hidden_size / num_attention_heads`` unless it is given.

    Raises:
        ValueError: for head counts that don't divide, or an activation that Qwen2 doesn't have.
    """

    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    vocab_size: int = 152128
    head_dim: int = None  # type: ignore[assignment]  # __post_init__ sets it
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 32768
    hidden_act: str = "silu"

    def __post_init__(self):
        _whole("text_config", "num_hidden_layers", self.num_hidden_layers, _MOST["layers"])
        _whole("text_config", "vocab_size", self.vocab_size, _MOST["vocabulary"])
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
            _whole("text_config", name, getattr(self, name), _MOST["width"])
        if self.head_dim is not None:
            _whole("text_config", "head_dim", self.head_dim, _MOST["width"])
        _whole("text_config", "max_position_embeddings", self.max_position_embeddings, 2**40)
        for name in ("rms_norm_eps", "rope_theta"):
            _number("text_config", name, getattr(self, name))
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"text_config: {self.num_attention_heads} attention heads can't share "
                f"{self.num_key_value_heads} key/value heads."
            )
        if self.hidden_act != "silu":
            raise ValueError(f"text_config: hidden_act {self.hidden_act!r} is not supported; Qwen2 uses 'silu'.")


@dataclass
class FastVlmConfig:
    """Configuration of a FastVLM; fields as in transformers' ``FastVlmConfig``, read from any layout.

    Keys that this class does not know are kept in :attr:`extra`, nested ones included, so that a converted checkpoint
    loses none.

    Attributes:
        vision_config, text_config: the tower's and the decoder's shapes; dicts as in ``config.json`` are read.
        image_token_id: the id in ``input_ids`` that stands for one image token (transformers' ``image_token_index``).
        projector_hidden_act: the projector's activation, by transformers' name.
        vision_feature_select_strategy, vision_feature_layer: only "full" and -1, the last layer.
        multimodal_projector_bias: whether the projector's linear layers have biases.
        tie_word_embeddings: whether the head is the token embedding.
        projector_type: LLaVA's ``mm_projector_type``: "identity", "linear" or "mlp<N>x_gelu", N linear layers.
        eos_token_id: every id that ends an answer.
        image_aspect_ratio: how pictures are made square, "pad" or "crop".
        dtype: what the weights are stored in, by name; None where the file does not say.
        quantization: mlx-lm's entry (see ``quantization.py``); None for plain weights.
        extra: the ``config.json`` that this one was read from.

    Raises:
        ValueError: for a value that FastVLM does not support.
    """

    vision_config: VisionConfig = field(default_factory=VisionConfig)
    text_config: TextConfig = field(default_factory=TextConfig)
    image_token_id: int = 151646
    projector_hidden_act: str = "gelu"
    vision_feature_select_strategy: str = "full"
    vision_feature_layer: int = -1
    multimodal_projector_bias: bool = True
    tie_word_embeddings: bool = False
    projector_type: str = "mlp2x_gelu"
    eos_token_id: list[int] = field(default_factory=list)
    image_aspect_ratio: str = "crop"
    dtype: str | None = None
    quantization: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        if isinstance(self.vision_config, dict):
            self.extra = {"vision_config": self.vision_config, **self.extra}
            self.vision_config = read_vision_config(self.vision_config)
        if isinstance(self.text_config, dict):
            self.extra = {"text_config": self.text_config, **self.extra}
            self.text_config = _pick(TextConfig, _flat_rope(self.text_config))
        for id in (self.image_token_id, *self.eos_token_id):
            if isinstance(id, bool) or not isinstance(id, int) or abs(id) >= 2**31:
                raise ValueError(f"A token id must be a 32-bit number, got {short(id)}.")
        for name in ("projector_hidden_act", "projector_type"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a word, got {short(getattr(self, name))}.")
        if not isinstance(self.quantization, (dict, type(None))):
            raise ValueError(f"quantization must be an object, got {short(self.quantization)}.")
        if self.vision_feature_select_strategy != "full":
            raise ValueError(
                f"vision_feature_select_strategy {self.vision_feature_select_strategy!r} is not supported; "
                "FastVLM uses 'full'."
            )
        if self.vision_feature_layer != -1:
            raise ValueError(f"vision_feature_layer {self.vision_feature_layer} is not supported; FastVLM uses -1.")
        if self.image_aspect_ratio not in ("pad", "crop"):
            raise ValueError(
                f"image_aspect_ratio {self.image_aspect_ratio!r} is not supported; use 'pad' (Apple's files: black "
                "bars to a square) or 'crop' (transformers' files: shortest edge, then the centre)."
            )
        widths = self.vision_config.hidden_size, self.text_config.hidden_size
        if self.projector_layers == 0 and widths[0] != widths[1]:
            raise ValueError(
                f"mm_projector_type 'identity' does not lead from {widths[0]} image channels to {widths[1]} text "
                "channels; use 'linear' or 'mlp2x_gelu'."
            )

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> FastVlmConfig:
        """Read a parsed ``config.json`` of any layout; ``ValueError`` where it is not a FastVLM's."""
        kind = config.get("model_type")
        read = _READERS.get(kind) if isinstance(kind, str) else None
        if read is None:
            raise ValueError(
                f"config.json has model_type {short(kind)}, which is not a FastVLM; "
                f"expected one of {', '.join(map(repr, _READERS))}."
            )
        try:
            return read(config)
        except (TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:  # a list for a word, and such
            raise ValueError(f"config.json is malformed ({error}); download the checkpoint again.") from None

    @classmethod
    def from_file(cls, path: str | Path) -> FastVlmConfig:
        """Read a ``config.json``; ``ValueError`` where it is not JSON or not a FastVLM's."""
        return cls.from_dict(read_json(path))

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path, *, revision: str | None = None) -> FastVlmConfig:
        """Read the config of a folder, a hub id or "demo"; of a hub repository only this file is downloaded.

        Raises:
            FileNotFoundError: there is no such folder or repository.
            OSError: the download failed.
            ValueError: it is no FastVLM's config.
        """
        return cls.from_file(find_checkpoint(path_or_repo, revision, needed=("config.json",)) / "config.json")

    def save_pretrained(self, folder: str | Path):
        """Write :meth:`to_dict` as ``config.json``; makes the folder if there is none."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """The ``config.json`` of this package's layout, which is transformers' with timm's wrapper for the tower.

        Keys of the config it was read from that mean nothing here are kept, at their places.
        """
        vision = asdict(self.vision_config)
        text = asdict(self.text_config)
        read_vision, read_text = (self.extra.get(key) or {} for key in ("vision_config", "text_config"))
        config = {
            "architectures": ["FastVlmForConditionalGeneration"],
            "model_type": "fast_vlm",
            "vision_config": {
                **_without(read_vision, {*vision, *_REPLACED}),
                "model_type": "timm_wrapper",
                "architecture": "fastvit_mci3",
                "do_pooling": True,
                "global_pool": "avg",
                "hidden_size": self.vision_config.hidden_size,
                "image_size": vision.pop("image_size"),
                "initializer_range": 0.02,
                "model_args": {
                    **_without(read_vision.get("model_args") or {}, vision),
                    "inference_mode": True,
                    **_unlike_default(VisionConfig, vision),
                },
            },
            "text_config": {
                **_without(read_text, _REPLACED),
                "model_type": "qwen2",
                **text,
                "tie_word_embeddings": self.tie_word_embeddings,
            },
            "image_token_index": self.image_token_id,
            "image_seq_length": self.num_image_tokens,
            "projector_hidden_act": self.projector_hidden_act,
            "vision_feature_select_strategy": self.vision_feature_select_strategy,
            "vision_feature_layer": self.vision_feature_layer,
            "multimodal_projector_bias": self.multimodal_projector_bias,
            "mm_projector_type": self.projector_type,
            "tie_word_embeddings": self.tie_word_embeddings,
            "image_aspect_ratio": self.image_aspect_ratio,
            "eos_token_id": self.eos_token_id or None,
            "dtype": self.dtype,
            "quantization": self.quantization,
        }
        kept = _without(self.extra, {*config, *text, *_REPLACED})
        return kept | {key: value for key, value in config.items() if value is not None}

    @property
    def image_token_index(self) -> int:
        """transformers' name of :attr:`image_token_id`."""
        return self.image_token_id

    @property
    def projector_layers(self) -> int:
        """Linear layers of the projector: 2 in the released models. ``ValueError`` for an unknown type."""
        number = re.fullmatch(r"mlp([1-9]\d*)x_gelu", self.projector_type)
        layers = {"identity": 0, "linear": 1}.get(self.projector_type, number and int(number[1]))
        if layers is None or layers > 16:
            raise ValueError(
                f"mm_projector_type {self.projector_type!r} is not supported; use 'identity', 'linear' or 'mlp2x_gelu' "
                "(any number of layers)."
            )
        return layers

    @property
    def num_image_tokens(self) -> int:
        """Tokens of one picture at the checkpoint's own size: 256 at 1024 pixels."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2


# Keys that what this package writes replaces. "auto_map" names code for transformers to run: of no use any more.
_REPLACED = {
    "auto_map",
    "dtype",
    "image_token_id",
    "model_args",
    "quantization_config",
    "rope_parameters",
    "rope_scaling",
    "torch_dtype",
}


def _without(values: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in set(keys)}


def _pick(cls, values: dict[str, Any]):
    """``cls`` from those of ``values`` that it has a field for; null means the default."""
    known = {f.name for f in fields(cls)}
    try:
        return cls(**{k: v for k, v in values.items() if k in known and v is not None})
    except TypeError as error:
        raise ValueError(f"config.json does not describe a {cls.__name__} ({error}).") from None


def _unlike_default(cls, values: dict[str, Any]) -> dict[str, Any]:
    """Those of ``values`` that differ from the dataclass's defaults."""
    default = asdict(cls())
    return {key: value for key, value in values.items() if value != default[key]}


def _flat_rope(text: dict[str, Any]) -> dict[str, Any]:
    """The text config with transformers 5's nested ``rope_parameters`` spread into ``rope_theta``."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rope_type {kind!r} is not supported; FastVLM's decoders use the default one.")
    return {"rope_theta": rope.get("rope_theta"), **{k: v for k, v in text.items() if v is not None}}


def as_ids(value) -> list[int]:
    """Token ids as files state them: one, several, or none (null)."""
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def read_vision_config(vision: dict[str, Any]) -> VisionConfig:
    """A tower's shape from Apple's ``vision_config`` or from transformers' timm wrapper (``model_args``)."""
    architecture = vision.get("architecture", "fastvit_mci3")
    if architecture != "fastvit_mci3":
        raise ValueError(f"vision tower {architecture!r} is not supported; FastVLM's is 'fastvit_mci3' (FastViTHD).")
    config = _pick(VisionConfig, {**vision, **(vision.get("model_args") or {})})
    stated = vision.get("hidden_size")
    if "architecture" in vision and stated is not None and stated != config.hidden_size:
        raise ValueError(
            f"vision_config says hidden_size {stated}, but embed_dims {config.embed_dims} give {config.hidden_size}."
        )
    return config


def _read_apple(config: dict[str, Any]) -> FastVlmConfig:
    """Apple's llava_qwen2: decoder fields on top; also mlx-vlm's, and Apple's MLX export, of the same type."""
    tower = config.get("mm_vision_tower") or "mobileclip_l_1024"
    size = re.search(r"_(\d+)$", tower)
    vision = read_vision_config({"image_size": int(size[1]) if size else 1024, **(config.get("vision_config") or {})})
    if config.get("mm_hidden_size", vision.hidden_size) != vision.hidden_size:
        raise ValueError(
            f"mm_hidden_size is {config['mm_hidden_size']}, but the vision tower {tower!r} gives {vision.hidden_size}."
        )
    text = config.get("text_config") or config  # mlx-vlm may nest a copy
    return FastVlmConfig(
        vision_config=vision,
        text_config=_pick(TextConfig, _flat_rope({**config, **text})),
        image_token_id=_first(config, "image_token_id", "image_token_index", default=LLAVA_IMAGE_TOKEN),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        projector_type=config.get("mm_projector_type") or "mlp2x_gelu",
        eos_token_id=as_ids(config.get("eos_token_id")),
        image_aspect_ratio=config.get("image_aspect_ratio") or "pad",
        dtype=_first(config, "dtype", "torch_dtype"),
        quantization=config.get("quantization"),
        extra=config,
    )


def _read_transformers(config: dict[str, Any]) -> FastVlmConfig:
    """transformers' fast_vlm, and ours, which adds ``image_aspect_ratio`` and ``quantization``."""
    vision: Any = config.get("vision_config") or {}
    text: Any = config.get("text_config") or {}
    tied = config.get("tie_word_embeddings") or text.get("tie_word_embeddings") or False
    eos = config.get("eos_token_id")
    base = FastVlmConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=_first(config, "image_token_id", "image_token_index", default=151646),
        tie_word_embeddings=bool(tied),
        projector_type=config.get("mm_projector_type") or "mlp2x_gelu",
        eos_token_id=as_ids(text.get("eos_token_id") if eos is None else eos),
        dtype=_first(config, "dtype", "torch_dtype"),
        quantization=config.get("quantization"),
        extra=config,
    )
    plain = (
        "projector_hidden_act",
        "vision_feature_select_strategy",
        "vision_feature_layer",
        "multimodal_projector_bias",
        "image_aspect_ratio",
    )
    return replace(base, **{name: config[name] for name in plain if config.get(name) is not None})


def _first(config: dict[str, Any], *names: str, default=None):
    """The first of ``names`` that the config sets."""
    return next((config[name] for name in names if config.get(name) is not None), default)


_READERS = {"llava_qwen2": _read_apple, "fast_vlm": _read_transformers}
