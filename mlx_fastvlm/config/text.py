"""The decoder's configuration."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import short
from .keys import check_keys
from .values import MOST, check_number, check_whole, pick, without

# What transformers' Qwen2Config takes for keys that a file leaves out.
QWEN2_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 151936,
}
# transformers' names of the activations that are computed here (models/activations.py).
ACTIVATIONS = (
    "gelu",
    "gelu_accurate",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_python_tanh",
    "gelu_pytorch_tanh",
    "leaky_relu",
    "linear",
    "mish",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "swish",
    "tanh",
)
# How rotary positions are stretched (rope_scaling; in transformers 5 rope_parameters). Of each type:
# what has to be there, and what may be.
ROPES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "yarn": (
        (),
        (
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
    ),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor"),
        ("original_max_position_embeddings",),
    ),
}
ROPE = "rope_parameters"
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass
class TextConfig:
    """Shape of the Qwen2 decoder; names are transformers' ``Qwen2Config``'s, defaults FastVLM-7B's.

    Attributes:
        head_dim: ``hidden_size / num_attention_heads`` unless it is given.
        hidden_act: of the perceptrons, one of :data:`ACTIVATIONS`.
        rope_scaling: how rotary positions are stretched, as :func:`read_rope` reads it; None where they are not.
        layer_types: of each layer, "full_attention" (everything before a token) or "sliding_attention"; None where none
            slides.
        sliding_window: how many tokens a sliding layer sees, a token itself included; None where no layer slides.

    Raises:
        ValueError: for head counts that don't divide, windows without a size, or an activation that Qwen2 doesn't have.
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
    layer_types: list[str] | None = None
    sliding_window: int | None = None
    rope_scaling: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_whole("text_config", "num_hidden_layers", self.num_hidden_layers, MOST["layers"])
        check_whole("text_config", "vocab_size", self.vocab_size, MOST["vocabulary"])
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
            check_whole("text_config", name, getattr(self, name), MOST["width"])
        check_whole("text_config", "max_position_embeddings", self.max_position_embeddings, 2**40)
        for name in ("rms_norm_eps", "rope_theta"):
            check_number("text_config", name, getattr(self, name))
        self._check_heads()
        self._check_windows()
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"text_config: hidden_act {short(self.hidden_act)} is not supported; Qwen2 uses 'silu', and known are "
                f"{', '.join(ACTIVATIONS)}."
            )
        if self.rope_scaling is not None:
            check_rope(self.rope_scaling)
            if self.rope_scaling["rope_type"] == "dynamic" and self.head_dim == 2:
                raise ValueError("text_config: rope_type 'dynamic' needs a head_dim above 2.")

    def _check_heads(self) -> None:
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        if heads % shared:
            raise ValueError(f"text_config: {heads} attention heads can't share {shared} key/value heads.")
        if self.head_dim is None:
            if heads > self.hidden_size:
                raise ValueError(
                    f"text_config: {heads} attention heads can't divide a hidden_size of {self.hidden_size}; state "
                    "head_dim."
                )
            self.head_dim = self.hidden_size // heads
        check_whole("text_config", "head_dim", self.head_dim, MOST["width"])
        check_whole("text_config", "num_attention_heads x head_dim", heads * self.head_dim, MOST["width"])
        if self.head_dim % 2:  # rotary embeddings turn pairs
            raise ValueError(f"text_config: head_dim must be an even number, got {self.head_dim}.")

    def _check_windows(self) -> None:
        types = self.layer_types
        if types is None:
            self.sliding_window = None
            return
        if not isinstance(types, (list, tuple)) or any(kind not in (FULL, SLIDING) for kind in types):
            raise ValueError(
                f"text_config: layer_types must be a list of {FULL!r} and {SLIDING!r}, got {short(types)}."
            )
        if len(types) != self.num_hidden_layers:
            raise ValueError(
                f"text_config: layer_types has {len(types)} entries for {self.num_hidden_layers} layers; give one each."
            )
        if SLIDING not in types:
            self.layer_types = self.sliding_window = None
        elif self.sliding_window is None:
            raise ValueError(
                f"text_config: layer_types has {SLIDING!r}, but no window; set use_sliding_window and sliding_window."
            )
        else:
            check_whole("text_config", "sliding_window", self.sliding_window, 2**40)

    @property
    def windows(self) -> list[int | None]:
        """Of each layer, how many tokens it sees, a token itself included; None for all before a token."""
        types = self.layer_types or [FULL] * self.num_hidden_layers
        return [self.sliding_window if kind == SLIDING else None for kind in types]

    def to_dict(self) -> dict[str, Any]:
        """What a file says of it, in transformers' words."""
        slides = self.layer_types is not None
        left_out = [] if slides else ["layer_types", "sliding_window"]
        fields = without(asdict(self), left_out if self.rope_scaling else [*left_out, "rope_scaling"])
        return {**fields, "use_sliding_window": slides}


def read_text_config(text: dict[str, Any]) -> TextConfig:
    """A decoder's shape from transformers' ``text_config``, or from Apple's top level.

    Raises:
        ValueError: for what Qwen2 is not, or this package doesn't compute.
    """
    values = {**QWEN2_DEFAULTS, **{key: value for key, value in text.items() if value is not None}}
    if "num_key_value_heads" in text and text["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    rope, theta = read_rope(text, values.get("max_position_embeddings", TextConfig.max_position_embeddings))
    if theta is not None:  # what is nested wins in transformers too
        values["rope_theta"] = theta
    values["rope_scaling"] = rope
    return pick(TextConfig, {**values, **_windows(text, values["num_hidden_layers"])})


def _windows(text: dict[str, Any], layers: Any) -> dict[str, Any]:
    """``sliding_window`` and ``layer_types`` as Qwen2Config has them in the end."""
    window = text.get("sliding_window", 4096) if text.get("use_sliding_window") else None
    first, types = text.get("max_window_layers", 28), text.get("layer_types")
    if not isinstance(first, int):
        raise ValueError(f"text_config: max_window_layers must be a whole number, got {short(first)}.")
    if types is None and window is not None and isinstance(layers, int) and first < layers <= MOST["layers"]:
        types = [SLIDING if i >= first else FULL for i in range(layers)]
    return {"sliding_window": window, "layer_types": types}


def read_rope(text: dict[str, Any], length: Any) -> tuple[dict[str, Any] | None, Any]:
    """What a ``text_config`` says of stretching, None for nothing, and of ``rope_theta``, None where it is not nested.

    Args:
        length: ``max_position_embeddings``.

    Raises:
        ValueError: for a type that is not computed here, and for values that it can't have.
    """
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"text_config: rope_parameters must be an object, got {short(rope)}.")
    check_keys(ROPE, rope)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None, rope.get("rope_theta")
    if not isinstance(kind, str) or kind not in ROPES:
        raise ValueError(
            f"{ROPE}: rope_type {short(kind)} is not supported; use 'default', {', '.join(map(repr, ROPES))}."
        )
    needed, possible = ROPES[kind]
    missing = [name for name in needed if rope.get(name) is None]
    if missing:
        raise ValueError(f"{ROPE}: rope_type {kind!r} needs {', '.join(missing)}.")
    found = {name: rope[name] for name in (*needed, *possible) if rope.get(name) is not None}
    if "original_max_position_embeddings" in possible:
        found.setdefault("original_max_position_embeddings", length)
    return check_rope({"rope_type": kind, **found}), rope.get("rope_theta")


def check_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """The same; ``ValueError`` for values that the type can't have."""
    for name, value in rope.items():
        if name == "rope_type":
            continue
        if name == "truncate":
            if not isinstance(value, bool):
                raise ValueError(f"{ROPE}: truncate must be true or false, got {short(value)}.")
        elif name == "original_max_position_embeddings":
            check_whole(ROPE, name, value, 2**40)
        else:
            check_number(ROPE, name, value)
    if rope["rope_type"] == "llama3" and rope["low_freq_factor"] >= rope["high_freq_factor"]:
        raise ValueError(f"{ROPE}: low_freq_factor must be below high_freq_factor.")
    return rope
