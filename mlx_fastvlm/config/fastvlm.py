"""The whole configuration of a FastVLM."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import short
from ..files import read_json
from ..hub import find_checkpoint
from .keys import check_keys
from .layouts import READERS
from .text import TextConfig, read_text_config
from .values import MOST, as_json, check_whole, without
from .vision import VisionConfig, read_vision_config

# Keys that what this package writes replaces. "auto_map" names code for transformers to run: of no use any more.
_REPLACED = {
    "auto_map",
    "dtype",
    "image_token_id",
    "layer_types",
    "model_args",
    "quantization_config",
    "rope_parameters",
    "rope_scaling",
    "torch_dtype",
}


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
        image_aspect_ratio: how images are made square, "pad" or "crop".
        trained_image_sizes: sides of the squares that training saw, in pixels; empty where the file does not say.
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
    trained_image_sizes: list[int] = field(default_factory=list)
    dtype: str | None = None
    quantization: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.vision_config, dict):
            vision: dict[str, Any] = as_json(self.vision_config)
            self.extra = {"vision_config": vision, **self.extra}
            self.vision_config = read_vision_config(vision)
        if isinstance(self.text_config, dict):
            text: dict[str, Any] = as_json(self.text_config)
            self.extra = {"text_config": text, **self.extra}
            check_keys("text_config", text)
            self.text_config = read_text_config(text)
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
        self._check_trained_image_sizes()
        widths = self.vision_config.hidden_size, self.text_config.hidden_size
        if self.projector_layers == 0 and widths[0] != widths[1]:
            raise ValueError(
                f"mm_projector_type 'identity' does not lead from {widths[0]} image channels to {widths[1]} text "
                "channels; use 'linear' or 'mlp2x_gelu'."
            )

    def _check_trained_image_sizes(self) -> None:
        sizes: Any = self.trained_image_sizes
        if not isinstance(sizes, list):
            raise ValueError(f"trained_image_sizes must be a list of sides in pixels, got {short(sizes)}.")
        for size in sizes:
            check_whole("config.json", "trained_image_sizes", size, MOST["pixels"])

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> FastVlmConfig:
        """Read a parsed ``config.json`` of any layout; ``ValueError`` where it is not a FastVLM's."""
        kind = config.get("model_type")
        read = READERS.get(kind) if isinstance(kind, str) else None
        if read is None:
            raise ValueError(
                f"config.json has model_type {short(kind)}, which is not a FastVLM; "
                f"expected one of {', '.join(map(repr, READERS))}."
            )
        try:
            config = as_json(config)
            check_keys("config.json", config)
            return cls(**read(config), extra=config)
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

    def save_pretrained(self, folder: str | Path) -> None:
        """Write :meth:`to_dict` as ``config.json``; makes the folder if there is none."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(self.to_json_string(), encoding="utf-8")

    def to_json_string(self) -> str:
        """What :meth:`save_pretrained` writes."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def get_text_config(self) -> TextConfig:
        """The decoder's part, by transformers' name for it."""
        return self.text_config

    def to_dict(self) -> dict[str, Any]:
        """The ``config.json`` of this package's layout, which is transformers' with timm's wrapper for the tower.

        Keys of the config it was read from that mean nothing here are kept, at their places.
        """
        vision = asdict(self.vision_config)
        text = self.text_config.to_dict()
        read_vision, read_text = (self.extra.get(key) or {} for key in ("vision_config", "text_config"))
        config = {
            "architectures": ["FastVlmForConditionalGeneration"],
            "model_type": "fast_vlm",
            "vision_config": {
                **without(read_vision, {*vision, *_REPLACED}),
                "model_type": "timm_wrapper",
                "architecture": "fastvit_mci3",
                "do_pooling": True,
                "global_pool": "avg",
                "hidden_size": self.vision_config.hidden_size,
                "image_size": self.vision_config.image_size,
                "initializer_range": 0.02,
                "model_args": {
                    **without(read_vision.get("model_args") or {}, {*vision, "pos_embs"}),
                    "inference_mode": True,
                    **self.vision_config.model_args(),
                },
            },
            "text_config": {
                **without(read_text, _REPLACED),
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
            "trained_image_sizes": self.trained_image_sizes or None,
            "eos_token_id": self.eos_token_id or None,
            "dtype": self.dtype,
            "quantization": self.quantization,
        }
        kept = without(self.extra, {*config, *text, *_REPLACED})
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
        """Tokens of one image at the checkpoint's own size: 256 at 1024 pixels."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2
