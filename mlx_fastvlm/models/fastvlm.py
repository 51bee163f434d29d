"""FastVLM: the tower, the projector and the decoder together (transformers' ``modeling_fast_vlm``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from ..checkpoints.saving import save
from ..checkpoints.vocabulary import resized_rows
from ..config import FastVlmConfig
from ..hub import find_checkpoint
from ..keywords import knows_habits
from .counting import count_parameters
from .depthwise import prove
from .habits import CALLING, LOADING, RESIZING, SAVING, Habits
from .language import ATTENTIONS, DecoderLayer, Qwen2Model
from .loading import load_model
from .loss import causal_lm_loss
from .outputs import FastVlmCausalLMOutputWithPast, FastVlmModelOutputWithPast
from .placeholders import check_count, fill, signed
from .projector import FastVlmMultiModalProjector
from .public import public
from .threads import end_streams_with_thread
from .vision import FastViTHD

if TYPE_CHECKING:
    from typing_extensions import Self


class FastVlmModel(Habits):
    """Vision tower, projector and decoder, without the head (transformers' ``FastVlmModel``).

    Attributes:
        config: its :class:`FastVlmConfig`.
        vision_tower, multi_modal_projector, language_model: the three parts, each of use alone.
        has_head: whether this class has one.
    """

    has_head = False

    def __init__(self, config: FastVlmConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = FastViTHD(config.vision_config)
        self.multi_modal_projector = FastVlmMultiModalProjector(config)
        self.language_model = Qwen2Model(config.text_config)

    @classmethod
    @knows_habits(LOADING)
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        *,
        dtype: str | mx.Dtype | None = None,
        revision: str | None = None,
        lazy: bool = False,
        attn_implementation: str = "sdpa",
    ) -> Self:
        """The model of a checkpoint of any layout, without its processor; arguments and errors as for ``load``.

        A :class:`FastVlmModel` leaves out the head, and needs none.

        Args:
            attn_implementation: see :meth:`set_attn_implementation`.
        """
        folder = find_checkpoint(path_or_repo, revision)
        model = load_model(cls, folder, FastVlmConfig.from_file(folder / "config.json"), dtype=dtype)
        if not lazy:
            mx.eval(model.parameters())
            prove(model.vision_tower, model.config.vision_config.image_size, model.vision_tower.dtype)
        model.set_attn_implementation(attn_implementation)
        return model

    @knows_habits(SAVING)
    def save_pretrained(
        self, folder: str | Path, *, layout: str = "mlx", processor: Any = None, force: bool = False
    ) -> None:
        """Write the model as a checkpoint; see ``checkpoints/saving.py``, which does it.

        A :class:`FastVlmModel` is written without a head, for :class:`FastVlmModel` again, or where its config ties the
        head to the embedding for any class.
        """
        end_streams_with_thread()
        save(self, self.config, folder, layout=layout, processor=processor, force=force)

    @property
    def dtype(self) -> mx.Dtype:
        """What the decoder computes in; the tower's own is ``vision_tower.dtype``."""
        return self.language_model.norm.weight.dtype

    def num_parameters(self, only_trainable: bool = False) -> int:
        """How many weights there are, a tied head counted once and packed ones one by one.

        Args:
            only_trainable: leave out what is frozen.
        """
        return count_parameters(self, only_trainable)

    @property
    def layers(self) -> list[DecoderLayer]:
        """The decoder's, where mlx-lm's tools look for them (``make_prompt_cache``, ``linear_to_lora_layers``)."""
        return self.language_model.layers

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding; its ``weight`` is (vocabulary size, text hidden size)."""
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding, and with it a tied head; ``config`` is left as it is."""
        self.language_model.embed_tokens = value

    @knows_habits(RESIZING)
    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Embedding:
        """Give the vocabulary another size; the head follows, and so does ``config`` (transformers' method).

        Args:
            new_num_tokens: rows to have; None keeps their number. Rows beyond it are cut off, new ones are drawn
                around the mean of the old ones (see :func:`resized_rows`).
            pad_to_multiple_of: round the number up to a multiple of this.

        Returns:
            The embedding.

        Raises:
            ValueError: for a number below 1, a multiple of what is no whole number, or a quantized embedding, whose
                rows can't be drawn.
        """
        old = self.config.text_config.vocab_size
        rows = old if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            if not isinstance(pad_to_multiple_of, int) or pad_to_multiple_of < 1:
                raise ValueError(f"pad_to_multiple_of must be a whole number from 1, got {pad_to_multiple_of!r}.")
            rows = math.ceil(rows / pad_to_multiple_of) * pad_to_multiple_of
        if rows < 1:
            raise ValueError(f"new_num_tokens must be at least 1, got {rows}.")
        if rows != old:
            for layer in self._vocabulary_layers():
                if "scales" in layer:
                    raise ValueError(
                        "The embedding is quantized; resize it first, and quantize it afterwards (convert.py -d)."
                    )
                layer.weight = resized_rows(layer.weight, rows)
            self.config = replace(self.config, text_config=replace(self.config.text_config, vocab_size=rows))
        return self.get_input_embeddings()

    def _vocabulary_layers(self) -> list[nn.Module]:
        return [self.get_input_embeddings()]

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """How the decoder computes attention: "sdpa" (MLX's fused kernel) or "eager" (step by step).

        It is about the decoder only; the tower's attention has one implementation. ``output_attentions`` works with
        both: in transformers only with "eager".
        """
        if attn_implementation not in ATTENTIONS:
            raise ValueError(
                f"attn_implementation must be one of {', '.join(ATTENTIONS)}, got {attn_implementation!r}."
            )
        self.language_model.attn_implementation = attn_implementation

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether :meth:`gradient_checkpointing_enable` was called last."""
        return self.language_model.gradient_checkpointing

    def gradient_checkpointing_enable(self) -> None:
        """Train with less memory and more time: blocks and layers keep their inputs only (``mx.checkpoint``).

        It acts while the model is in training mode (``model.train()``) and runs without a cache, as in transformers.
        The gradients stay the same.
        """
        self.vision_tower.gradient_checkpointing = self.language_model.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Undo :meth:`gradient_checkpointing_enable`."""
        self.vision_tower.gradient_checkpointing = self.language_model.gradient_checkpointing = False

    def get_image_features(
        self,
        pixel_values: mx.array,
        vision_feature_layer: int | None = None,
        vision_feature_select_strategy: str | None = None,
    ) -> mx.array:
        """Encode and project images.

        Args:
            pixel_values: (images, height, width, 3), float, as a processor makes them: RGB in [0, 1], as long as it has
                no mean and deviation of its own; sides multiples of 64.
            vision_feature_layer: only -1, the last, which is the default.
            vision_feature_select_strategy: only "full", which is the default.

        Returns:
            (images, tokens, text hidden size), tokens in reading order, one for each 64 x 64 pixels. (transformers
            returns an output whose ``pooler_output`` this is.)

        Raises:
            ValueError: for another layer or strategy, or images of a wrong shape or of integers.
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

        Inside ``mx.compile`` and ``mx.vmap`` the placeholders can't be counted; see :meth:`embed`.

        Args:
            input_ids: (batch, length), integer, or None to find the placeholders by their embedding in
                ``inputs_embeds``.
            inputs_embeds: (batch, length, text hidden size).
            image_features: (images, tokens, text hidden size).

        Returns:
            (batch, length), bool.

        Raises:
            ValueError: where the placeholders are not exactly as many as the features.
        """
        mask = self._placeholders(input_ids, inputs_embeds)
        check_count(mask, image_features)
        return mask

    def _placeholders(self, input_ids: mx.array | None, inputs_embeds: mx.array | None) -> mx.array:
        if input_ids is not None:
            return signed(input_ids) == self.config.image_token_id
        if not 0 <= self.config.image_token_id < self.config.text_config.vocab_size:
            raise ValueError(
                f"This checkpoint's image placeholder {self.config.image_token_id} has no embedding to look for; "
                "pass input_ids."
            )
        placeholder = self.get_input_embeddings()(mx.array(self.config.image_token_id))
        found: mx.array = (inputs_embeds == placeholder).all(axis=-1)
        return found

    def embed(
        self,
        input_ids: mx.array | None = None,
        image_features: mx.array | None = None,
        inputs_embeds: mx.array | None = None,
        counted: bool = False,
    ) -> mx.array:
        """Text embeddings with the image features written over the placeholders, in reading order.

        Inside ``mx.compile`` and ``mx.vmap``, where arrays have no values yet, nothing can be raised: placeholders that
        are not as many as the features make everything NaN there.

        Args:
            input_ids: (batch, length), integer. A placeholder's own row counts where no image is written over it, as
                where a model answers with ``<image>``; an id outside the vocabulary has none, and the first row stands
                in.
            image_features: (images, tokens, text hidden size), or None.
            inputs_embeds: (batch, length, text hidden size), instead of ``input_ids``.
            counted: whether the caller knows that there are as many placeholders as features. Counting them waits for
                all that the device has to do before.

        Returns:
            (batch, length, text hidden size), in the embedding's dtype.
        """
        if inputs_embeds is None:
            assert input_ids is not None  # one of the two is given
            ids = signed(input_ids)
            if not 0 <= self.config.image_token_id < self.config.text_config.vocab_size:
                ids = mx.where(self._placeholders(ids, None), 0, ids)
            inputs_embeds = self.get_input_embeddings()(ids)
        if image_features is None:
            return inputs_embeds
        mask = self._placeholders(input_ids, inputs_embeds)
        return fill(inputs_embeds, mask, image_features, counted or check_count(mask, image_features))

    @knows_habits(CALLING)
    def __call__(  # noqa: PLR0913  transformers' signature
        self,
        input_ids: mx.array | None = None,
        pixel_values: mx.array | None = None,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        past_key_values: list[Any] | None = None,
        inputs_embeds: mx.array | None = None,
        vision_feature_layer: int | None = None,
        vision_feature_select_strategy: str | None = None,
        output_hidden_states: bool | int | Sequence[int] = False,
        output_attentions: bool = False,
        mm_encoder_outputs: dict[str, mx.array] | None = None,
        use_cache: bool | None = None,
    ) -> FastVlmModelOutputWithPast:
        """Run the model; arguments as in transformers, except that pixels are channels last.

        Args:
            input_ids: (batch, length), integer, with one placeholder ``config.image_token_id`` for each image token.
            pixel_values: (images, height, width, 3) in [0, 1], the images of the whole batch in reading order.
            attention_mask: (batch, cached + length), 0 for padding.
            position_ids: (batch, length).
            past_key_values: one cache per layer, filled in place: ``make_cache(model)``, or mlx-lm's. Without one
                nothing is cached, unless ``use_cache`` is True.
            inputs_embeds: (batch, length, text hidden size), instead of ``input_ids``.
            vision_feature_layer, vision_feature_select_strategy: see :meth:`get_image_features`.
            output_hidden_states, output_attentions: fill the fields of these names in the result; the former may be
                those that are wanted, by index (see :class:`Qwen2Model`).
            mm_encoder_outputs: ``{"image": features}``, what :meth:`get_image_features` returned, instead of
                ``pixel_values``.
            use_cache: True makes ``past_key_values`` where none are given, and returns them filled. None and False do
                not, as training wants it; transformers' default does.

        Raises:
            ValueError: unless exactly one of ``input_ids`` and ``inputs_embeds`` is given, with both ``pixel_values``
                and ``mm_encoder_outputs``, or where the placeholders and the images do not match.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds.")
        if pixel_values is not None and mm_encoder_outputs is not None:
            raise ValueError("You cannot specify both pixel_values and mm_encoder_outputs at the same time.")
        if use_cache and past_key_values is None:
            past_key_values = public("make_cache")(self)
        image_features = (mm_encoder_outputs or {}).get("image")
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

    With ``config.tie_word_embeddings`` the head is the token embedding; otherwise it is ``lm_head``. transformers keeps
    the other parts under ``model``; here they are the model's own.
    """

    has_head = True

    def __init__(self, config: FastVlmConfig) -> None:
        super().__init__(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)

    @property
    def model(self) -> FastVlmModel:
        """The parts without the head, as transformers has them under this name; the same layers, not a copy."""
        whole = FastVlmModel.__new__(FastVlmModel)
        nn.Module.__init__(whole)
        whole.config = self.config
        for part in ("vision_tower", "multi_modal_projector", "language_model"):
            setattr(whole, part, self[part])
        whole._training = self.training
        return whole

    def generate(self, input_ids: mx.array | None = None, **arguments: Any) -> Any:
        """transformers' generation from tensors: ids in, ids out; see :func:`mlx_fastvlm.generate_ids`."""
        return public("generate_ids")(self, input_ids=input_ids, **arguments)

    def get_output_embeddings(self) -> nn.Linear | nn.Embedding:
        """The head: ``lm_head``, or the token embedding where it is tied. Both have a (vocabulary, hidden) weight."""
        return self.lm_head if "lm_head" in self else self.get_input_embeddings()

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the head; a tied model is untied by this, and its config says so."""
        self.lm_head = value
        self.config = replace(self.config, tie_word_embeddings=False)

    def _vocabulary_layers(self) -> list[nn.Module]:
        return [*super()._vocabulary_layers(), *([self.lm_head] if "lm_head" in self else [])]

    def prepare_inputs_for_generation(
        self,
        input_ids: mx.array,
        next_sequence_length: int | None = None,
        past_key_values: list[Any] | None = None,
        attention_mask: mx.array | None = None,
        inputs_embeds: mx.array | None = None,
        is_first_iteration: bool = False,
        use_cache: bool = True,
        position_ids: mx.array | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The arguments of one step of a generation loop, ``model(**inputs)`` (transformers' ``GenerationMixin``).

        Images go in with the first step only: after it they are in the cache. Without a cache they go in always.

        Args:
            input_ids: (batch, length), the prompt and all that has been generated.
            next_sequence_length: how many of them, from the end, the cache does not know yet; None is all.
            past_key_values: one cache per layer.
            attention_mask: (batch, length), of all ids.
            inputs_embeds: (batch, prompt length, text hidden size), used instead of ids in the first step.
            is_first_iteration: whether this is that step.
            use_cache: False where the loop goes without a cache.
            position_ids: (batch, at least as many as the step's ids).
            kwargs: other arguments of the model, passed on; ``labels`` are not.
        """
        first = slice(None if next_sequence_length is None else -next_sequence_length, None)
        if inputs_embeds is not None and is_first_iteration:
            inputs: dict[str, Any] = {"inputs_embeds": inputs_embeds[:, first]}
        else:
            inputs = {"input_ids": input_ids[:, first]}
        (step,) = inputs.values()
        if position_ids is not None:
            position_ids = position_ids[:, -step.shape[1] :]
        inputs |= {"past_key_values": past_key_values, "attention_mask": attention_mask, "position_ids": position_ids}
        dropped = {"labels"}
        if use_cache and not is_first_iteration:
            dropped |= {"pixel_values", "mm_encoder_outputs"}
        inputs |= {name: value for name, value in kwargs.items() if name not in dropped}
        return {name: value for name, value in inputs.items() if value is not None}

    def logits(self, hidden_states: mx.array) -> mx.array:
        """(..., text hidden size) -> (..., vocabulary size)."""
        if "lm_head" in self:
            return self.lm_head(hidden_states)
        logits: mx.array = self.language_model.embed_tokens.as_linear(hidden_states)
        return logits

    @knows_habits(CALLING)
    def __call__(  # type: ignore[override]  # noqa: PLR0913  transformers' signature, labels in the midst
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
        output_hidden_states: bool | int | Sequence[int] = False,
        output_attentions: bool = False,
        mm_encoder_outputs: dict[str, mx.array] | None = None,
        use_cache: bool | None = None,
        shift_labels: mx.array | None = None,
    ) -> FastVlmCausalLMOutputWithPast:
        """Run the model; the arguments of :class:`FastVlmModel`, and these:

        Args:
            labels: (batch, length), what ``input_ids`` should have been; -100 is left out. The loss is the mean cross
                entropy of each position's logits against the next position's label.
            shift_labels: (batch, length), beside ``labels``: what each position should lead to, taken as it is. Rows
                that are cut in pieces need it.
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
            mm_encoder_outputs,
            use_cache,
        )
        hidden = outputs.last_hidden_state
        if not isinstance(logits_to_keep, int):
            hidden = hidden[:, logits_to_keep]
        elif logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        logits = self.logits(hidden)
        return FastVlmCausalLMOutputWithPast(
            None if labels is None else causal_lm_loss(logits, labels, shift_labels),
            logits,
            outputs.past_key_values,
            outputs.hidden_states,
            outputs.attentions,
            outputs.image_hidden_states,
        )
