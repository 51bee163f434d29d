"""The decoder's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .keys import check_keys
from .values import MOST, check_number, check_whole, pick

# What transformers' Qwen2Config takes for keys that a file leaves out.
QWEN2_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 151936,
}
ACTIVATIONS = ("silu", "swish")  # two names of one function


@dataclass
class TextConfig:
    """Shape of the Qwen2 decoder; names are transformers' ``Qwen2Config``'s, defaults FastVLM-7B's.

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
        check_whole("text_config", "num_hidden_layers", self.num_hidden_layers, MOST["layers"])
        check_whole("text_config", "vocab_size", self.vocab_size, MOST["vocabulary"])
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
            check_whole("text_config", name, getattr(self, name), MOST["width"])
        check_whole("text_config", "max_position_embeddings", self.max_position_embeddings, 2**40)
        for name in ("rms_norm_eps", "rope_theta"):
            check_number("text_config", name, getattr(self, name))
        self._check_heads()
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"text_config: hidden_act {self.hidden_act!r} is not supported; Qwen2 uses 'silu'.")

    def _check_heads(self):
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


def read_text_config(text: dict[str, Any]) -> TextConfig:
    """A decoder's shape from transformers' ``text_config``, or from Apple's top level.

    Raises:
        ValueError: for what Qwen2 is not, or this package doesn't compute.
    """
    values = {**QWEN2_DEFAULTS, **{key: value for key, value in text.items() if value is not None}}
    if "num_key_value_heads" in text and text["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    check_keys("rope_parameters", rope)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rope_type {kind!r} is not supported; FastVLM's decoders use the default one.")
    if rope.get("rope_theta") is not None:  # what is nested wins in transformers too
        values["rope_theta"] = rope["rope_theta"]
    return pick(TextConfig, values)
