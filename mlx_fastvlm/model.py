"""FastVLM: the tower, the projector and the decoder together (transformers' ``modeling_fast_vlm``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .config import FastVlmConfig
from .language import Qwen2Model
from .projector import FastVlmMultiModalProjector
from .vision import FastViTHD


@dataclass
class FastVlmModelOutputWithPast:
    """What :class:`FastVlmModel` returns.

    Attributes:
        last_hidden_state: (batch, length, text hidden size).
        past_key_values: the caches that were given, filled.
        hidden_states: the embeddings and every layer's output, each (batch, length, text hidden size), if asked for.
        attentions: every layer's weights, (batch, heads, length, keys), if asked for.
        image_hidden_states: (images, tokens, text hidden size), the projected features; None without pictures.
    """

    last_hidden_state: mx.array
    past_key_values: list[Any] | None = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None
    image_hidden_states: mx.array | None = None


@dataclass
class FastVlmCausalLMOutputWithPast:
    """What :class:`FastVlmForConditionalGeneration` returns.

    Attributes:
        loss: scalar, the mean cross entropy of the shifted labels; None without labels.
        logits: (batch, kept positions, vocabulary size).
        past_key_values, hidden_states, attentions, image_hidden_states: see :class:`FastVlmModelOutputWithPast`.
    """

    loss: mx.array | None = None
    logits: mx.array | None = None
    past_key_values: list[Any] | None = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None
    image_hidden_states: mx.array | None = None


class FastVlmModel(nn.Module):
    """Vision tower, projector and decoder, without the head (transformers' ``FastVlmModel``)."""

    def __init__(self, config: FastVlmConfig):
        super().__init__()
        self.config = config
        self.vision_tower = FastViTHD(config.vision_config)
        self.multi_modal_projector = FastVlmMultiModalProjector(config)
        self.language_model = Qwen2Model(config.text_config)

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        return self.language_model.embed_tokens

    def get_image_features(
        self,
        pixel_values: mx.array,
        vision_feature_layer: int | None = None,
        vision_feature_select_strategy: str | None = None,
    ) -> mx.array:
        """Encode and project pictures.

        Args:
            pixel_values: (images, height, width, 3), RGB in [0, 1]; sides multiples of 64.
            vision_feature_layer: only -1, the last, which is the default.
            vision_feature_select_strategy: only "full", which is the default.

        Returns:
            (images, tokens, text hidden size), tokens in reading order, one for each 64 x 64 pixels.
        """
        if vision_feature_layer not in (None, -1):
            raise ValueError(f"vision_feature_layer {vision_feature_layer} is not supported; FastVLM uses -1.")
        if vision_feature_select_strategy not in (None, "full"):
            raise ValueError(
                f"vision_feature_select_strategy {vision_feature_select_strategy!r} is not supported; "
                "FastVLM uses 'full'."
            )
        features = self.vision_tower(pixel_values).last_hidden_state
        return self.multi_modal_projector(features.flatten(1, 2))

    def get_placeholder_mask(
        self, input_ids: mx.array | None, inputs_embeds: mx.array | None, image_features: mx.array
    ) -> mx.array:
        """Where image features go.

        Args:
            input_ids: (batch, length), or None to find the placeholders by their embedding in ``inputs_embeds``.
            inputs_embeds: (batch, length, text hidden size).
            image_features: (images, tokens, text hidden size).

        Returns:
            (batch, length), bool.

        Raises:
            ValueError: where the placeholders are not exactly as many as the features.
        """
        if input_ids is not None:
            mask = input_ids == self.config.image_token_id
        else:
            if not 0 <= self.config.image_token_id < self.config.text_config.vocab_size:
                raise ValueError(
                    f"This checkpoint's image placeholder {self.config.image_token_id} has no embedding to look for; "
                    "pass input_ids."
                )
            placeholder = self.get_input_embeddings()(mx.array(self.config.image_token_id))
            mask = (inputs_embeds == placeholder).all(axis=-1)
        tokens, features = mask.sum().item(), image_features.shape[0] * image_features.shape[1]
        if tokens != features:
            raise ValueError(f"Image features and image tokens do not match, tokens: {tokens}, features: {features}.")
        return mask

    def embed(
        self,
        input_ids: mx.array | None = None,
        image_features: mx.array | None = None,
        inputs_embeds: mx.array | None = None,
    ) -> mx.array:
        """Text embeddings with the image features written over the placeholders, in reading order.

        Args:
            input_ids: (batch, length). Placeholders are never looked up: their id may lie outside the vocabulary, or
                be another token's in it.
            image_features: (images, tokens, text hidden size), or None.
            inputs_embeds: (batch, length, text hidden size), instead of ``input_ids``.

        Returns:
            (batch, length, text hidden size), in the embedding's dtype.
        """
        if inputs_embeds is None:
            placeholders = input_ids == self.config.image_token_id
            inputs_embeds = self.get_input_embeddings()(mx.where(placeholders, 0, input_ids))
        if image_features is None:
            return inputs_embeds
        mask = self.get_placeholder_mask(input_ids, inputs_embeds, image_features)
        nth = mx.cumsum(mask.flatten().astype(mx.int32)) - 1  # which feature a placeholder takes
        taken = image_features.flatten(0, 1)[mx.maximum(nth, 0)].reshape(inputs_embeds.shape)
        return mx.where(mask[..., None], taken.astype(inputs_embeds.dtype), inputs_embeds)

    def __call__(
        self,
        input_ids: mx.array | None = None,
        pixel_values: mx.array | None = None,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        past_key_values: list[Any] | None = None,
        inputs_embeds: mx.array | None = None,
        vision_feature_layer: int | None = None,
        vision_feature_select_strategy: str | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> FastVlmModelOutputWithPast:
        """Run the model; arguments as in transformers, except that pixels are channels last.

        Args:
            input_ids: (batch, length), with one placeholder ``config.image_token_id`` for each image token.
            pixel_values: (images, height, width, 3) in [0, 1], the pictures of the whole batch in reading order.
            attention_mask: (batch, cached + length), 0 for padding.
            position_ids: (batch, length).
            past_key_values: one cache per layer, filled in place.
            inputs_embeds: (batch, length, text hidden size), instead of ``input_ids``.

        Raises:
            ValueError: unless exactly one of ``input_ids`` and ``inputs_embeds`` is given, or where the placeholders
                and the pictures do not match.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds.")
        image_features = None
        if pixel_values is not None:
            image_features = self.get_image_features(pixel_values, vision_feature_layer, vision_feature_select_strategy)
        outputs = self.language_model(
            self.embed(input_ids, image_features, inputs_embeds),
            attention_mask,
            position_ids,
            past_key_values,
            output_hidden_states,
            output_attentions,
        )
        return FastVlmModelOutputWithPast(
            outputs.last_hidden_state, past_key_values, outputs.hidden_states, outputs.attentions, image_features
        )


class FastVlmForConditionalGeneration(FastVlmModel):
    """FastVLM with its language-model head (transformers' class of this name).

    With ``config.tie_word_embeddings`` the head is the token embedding; otherwise it is ``lm_head``.
    """

    def __init__(self, config: FastVlmConfig):
        super().__init__(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)

    def logits(self, hidden_states: mx.array) -> mx.array:
        """(..., text hidden size) -> (..., vocabulary size)."""
        if "lm_head" in self:
            return self.lm_head(hidden_states)
        return self.language_model.embed_tokens.as_linear(hidden_states)

    def __call__(
        self,
        input_ids: mx.array | None = None,
        pixel_values: mx.array | None = None,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        past_key_values: list[Any] | None = None,
        inputs_embeds: mx.array | None = None,
        labels: mx.array | None = None,
        logits_to_keep: int | mx.array = 0,
        vision_feature_layer: int | None = None,
        vision_feature_select_strategy: str | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> FastVlmCausalLMOutputWithPast:
        """Run the model; the arguments of :class:`FastVlmModel`, and these:

        Args:
            labels: (batch, length), what ``input_ids`` should have been; -100 is left out. The loss is the mean cross
                entropy of each position's logits against the next position's label.
            logits_to_keep: only the last so many positions' logits, or those at these indices; 0 is all.
        """
        outputs = super().__call__(
            input_ids,
            pixel_values,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            vision_feature_layer,
            vision_feature_select_strategy,
            output_hidden_states,
            output_attentions,
        )
        hidden = outputs.last_hidden_state
        if not isinstance(logits_to_keep, int):
            hidden = hidden[:, logits_to_keep]
        elif logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        logits = self.logits(hidden)
        return FastVlmCausalLMOutputWithPast(
            None if labels is None else causal_lm_loss(logits, labels),
            logits,
            outputs.past_key_values,
            outputs.hidden_states,
            outputs.attentions,
            outputs.image_hidden_states,
        )


def causal_lm_loss(logits: mx.array, labels: mx.array) -> mx.array:
    """Mean cross entropy of predicting the next label, in float32.

    Args:
        logits: (batch, length, vocabulary size).
        labels: (batch, length), -100 where there is nothing to learn.
    """
    if logits.shape[:2] != labels.shape:
        raise ValueError(f"labels must have the logits' shape {logits.shape[:2]}, got {tuple(labels.shape)}.")
    targets = labels[:, 1:]
    counted = targets != -100
    losses = nn.losses.cross_entropy(logits[:, :-1].astype(mx.float32), mx.where(counted, targets, 0))
    return (losses * counted).sum() / counted.sum()
