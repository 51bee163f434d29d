"""Every key that a checkpoint's JSON files are known to hold, and what happens to it.

Nothing that could change an answer is passed over in silence: a key is honoured, known to be harmless, or refused where
its value asks for something that this package does not do. One that is not in the table is warned of.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import short

Fate = Literal["honoured", "harmless", "refused"]


@dataclass(frozen=True)
class Key:
    """What happens to a key.

    Attributes:
        fate: "honoured": something reads it. "harmless": nothing does, and no answer depends on it. "refused": nothing
            does, so a value is refused unless it asks for what is done anyway.
        fits: of a refused one: whether such a value, among all of its object, is fine.
        why: what is done anyway, for the error.
    """

    fate: Fate
    fits: Callable[[Any, dict[str, Any]], bool] = lambda value, values: True
    why: str = ""


HONOURED, HARMLESS = Key("honoured"), Key("harmless")


def _all(key: Key, names: str) -> dict[str, Key]:
    return dict.fromkeys(names.split(), key)


def _only(*fine: Any, why: str) -> Key:
    """Refused unless the value is one of these; null always is."""
    return Key("refused", lambda value, _: value is None or any(value == f for f in fine), why)


# What transformers writes into any configuration: labels, training, and how answers are sampled, which is the caller's.
_GENERIC = _all(
    HARMLESS,
    """
    architectures attn_implementation auto_map begin_suppress_tokens bos_token_id chunk_size_feed_forward
    cross_attention_hidden_size add_cross_attention decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id bad_words_ids id2label initializer_range is_decoder is_encoder_decoder label2id label_names
    length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences
    output_attentions output_hidden_states output_scores pad_token_id prefix problem_type pruned_heads
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype
    torchscript transformers_version typical_p use_bfloat16 use_cache eos_token_id tie_word_embeddings model_type
    """,
)

_TEXT = {
    **_GENERIC,
    **_all(
        HONOURED,
        """
        hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size head_dim
        rms_norm_eps rope_theta rope_scaling rope_parameters max_position_embeddings sliding_window max_window_layers
        use_sliding_window layer_types eos_token_id tie_word_embeddings hidden_act
        """,
    ),
    **_all(HARMLESS, "attention_dropout pretraining_tp"),
    # In transformers' own test configuration; its Qwen2 does not read them.
    **_all(HARMLESS, "is_training hidden_dropout_prob attention_probs_dropout_prob"),
    "attention_bias": _only(True, why="Qwen2's queries, keys and values have biases, in transformers too"),
    "model_type": _only("qwen2", "llava_qwen2", "fast_vlm", why="the decoder must be a Qwen2, 'qwen2'"),
    "partial_rotary_factor": _only(1, why="all of a head is rotated"),
    "rope_traditional": _only(False, why="the halves of a head are rotated together"),
}

_ROPE = {
    **_all(
        HONOURED,
        """
        rope_type type rope_theta factor original_max_position_embeddings attention_factor beta_fast beta_slow mscale
        mscale_all_dim truncate low_freq_factor high_freq_factor
        """,
    ),
    "partial_rotary_factor": _TEXT["partial_rotary_factor"],
    **{
        kind: Key("refused", lambda *_: False, "all layers have the same rotation")
        for kind in ("full_attention", "sliding_attention")
    },
}

_TOWER = {
    **_all(HONOURED, "layers embed_dims mlp_ratios token_mixers pos_embs_shapes repmixer_kernel_size"),
    **_all(HONOURED, "down_patch_size down_stride cls_ratio downsamples se_downsamples lkc_use_act"),
    **_all(HARMLESS, "num_classes layer_scale_init_value"),
}

_VISION = {
    **_GENERIC,
    **_TOWER,
    **_all(HONOURED, "architecture image_size hidden_size model_args"),
    **_all(HARMLESS, "do_pooling global_pool intermediate_size patch_size projection_dim pretrained_cfg"),
    "num_channels": _only(3, why="images are RGB"),
}

_TIMM = {
    **_TOWER,
    **_all(HARMLESS, "inference_mode stem_use_scale_branch drop_rate proj_drop_rate drop_path_rate global_pool"),
    "pos_embs": Key(
        "refused",
        lambda value, _: value is None or (isinstance(value, list) and not any(value)),
        "a file can only say null for each stage, that it has no position convolution",
    ),
    "fork_feat": _only(False, why="the features are the last stage's"),
    "features_only": _only(False, why="the features are the last stage's"),
    "in_chans": _only(3, why="images are RGB"),
    "act_layer": _only(why="it is GELU"),
    "norm_layer": _only(why="it is the one of fastvit_mci3"),
}

_WHOLE = {
    **_TEXT,  # Apple's files have them at the top
    **_all(
        HONOURED,
        """
        model_type vision_config text_config image_token_id image_token_index projector_hidden_act
        vision_feature_select_strategy vision_feature_layer multimodal_projector_bias mm_projector_type mm_hidden_size
        mm_vision_tower image_aspect_ratio trained_image_sizes dtype torch_dtype quantization
        """,
    ),
    # LLaVA's training, its cuts of high-resolution images ("anyres" is refused), what Apple's tower doesn't look at.
    **_all(
        HARMLESS,
        """
        freeze_mm_mlp_adapter tune_mm_mlp_adapter unfreeze_mm_vision_tower use_mm_proj mm_projector_lr
        mm_vision_tower_lr mm_use_im_patch_token mm_vision_select_feature mm_vision_select_layer mm_patch_merge_type
        image_grid_pinpoints image_crop_resolution image_split_resolution tokenizer_model_max_length
        tokenizer_padding_side image_seq_length quantization_config generation_config
        """,
    ),
    "ignore_index": _only(-100, why="labels of -100 are left out of the loss"),
    "mm_use_im_start_end": _only(False, why="no tokens are put around an image"),
}

# How answers are sampled is the caller's choice, whatever the file says; mlx-lm does the same.
_GENERATION = {
    **_all(
        HARMLESS,
        """
        assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind
        cache_implementation compile_config constraints disable_compile dola_layers encoder_repetition_penalty
        epsilon_cutoff eta_cutoff force_words_ids guidance_scale is_assistant low_memory max_cache_len
        max_matching_ngram_size max_new_tokens max_time min_new_tokens min_p num_assistant_tokens
        num_assistant_tokens_schedule output_logits penalty_alpha prefill_chunk_size prompt_lookup_num_tokens
        renormalize_logits sequence_bias stop_strings target_lookbehind token_healing watermarking_config
        """,
    ),
    **_GENERIC,
    "eos_token_id": HONOURED,
}

_TOKENIZER = {
    **_all(HONOURED, "added_tokens_decoder eos_token eos_token_id pad_token chat_template"),
    # Texts that a template may ask for by name.
    **_all(HONOURED, "bos_token unk_token sep_token cls_token mask_token"),
    **_all(
        HARMLESS,
        """
        additional_special_tokens extra_special_tokens auto_map backend errors image_token
        is_local local_files_only model_max_length model_input_names model_specific_special_tokens
        name_or_path padding_side processor_class special_tokens_map_file split_special_tokens
        tokenizer_class tokenizer_file truncation_side use_fast clean_up_tokenization_spaces add_eos_token
        add_bos_token
        """,
    ),
    "add_prefix_space": _only(False, why="no space is put before a text"),
}

TABLE: dict[str, dict[str, Key]] = {
    "config.json": _WHOLE,
    "text_config": _TEXT,
    "rope_parameters": _ROPE,
    "vision_config": _VISION,
    "model_args": _TIMM,
    "generation_config.json": _GENERATION,
    "tokenizer_config.json": _TOKENIZER,
}


def check_keys(place: str, values: dict[str, Any]) -> None:
    """Go through an object's keys; what is not known is warned of.

    Args:
        place: a key of :data:`TABLE`.

    Raises:
        ValueError: for a value that asks for what this package does not do.
    """
    table = TABLE[place]
    for name, value in values.items():
        key = table.get(name)
        if key and key.fate == "refused" and not key.fits(value, values):
            raise ValueError(f"{place}: {name} {short(value)} is not supported; {key.why}.")
    unknown = [name for name in values if name not in table and not name.startswith("_")]
    if unknown:
        warnings.warn(
            f"{place} has keys that are not known here, so answers may differ from those of the program that wrote "
            f"them: {short(unknown)}.",
            stacklevel=2,
        )
