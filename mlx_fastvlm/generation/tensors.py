"""``model.generate``: transformers' generation from token ids, images and masks, for whoever has no prompt but tensors.

Greedy, sampling, and beams as transformers decodes them, with its arguments and its order of processing: penalties,
processors, then for sampling temperature, top_k, top_p, min_p. All rows of the batch share one forward over plain KV
caches, padded on the left. Prompts, stop strings, bounded caches and answers that come and go are the engine's.

Why a loop of its own, and not the engine's: what transformers' callers see here is all rows in step. Scores, hidden
states, criteria and processors have a row axis; beams trade places among rows at each step; the caches of all come
back filled; samples of all rows are drawn from ``mx.random``'s one state, and must not change because a score is asked
for. In the engine a row is by itself, with a seed and filters in mlx-lm's order. Greedy rows, which could go there,
give the same tokens (a test holds it) and gain nothing: no text is spelt here, and there is nobody to stream to.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..errors import UsageError
from .beams import beam_search
from .logits import LogitsChain
from .stepping import Decoder, Record, TensorOptions, stopped

if TYPE_CHECKING:
    from ..models.fastvlm import FastVlmForConditionalGeneration

INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "attention_mask", "mm_encoder_outputs", "past_key_values")
# Arguments of transformers that say how, not what; other values than these would be passed over.
FIXED: dict[str, tuple[Any, ...]] = {
    "use_cache": (None, True),
    "return_legacy_cache": (None, False),
    "low_memory": (None, False),
    "num_beam_groups": (None, 1),
    "generation_config": (None,),
    "synced_gpus": (None, False),
    "streamer": (None,),
    "assistant_model": (None,),
    "renormalize_logits": (None, False),
}
_INSTEAD = {
    "streamer": "take stream_generate, which gives the text as it comes",
    "generation_config": "give its values as arguments",
    "max_time": "give a stopping criterion",
    "stop_strings": "take mlx_fastvlm.generate(..., stop=...)",
    "tokenizer": "take mlx_fastvlm.generate(..., stop=...)",
    "prompt_lookup_num_tokens": "leave it out; there is no assisted decoding",
    "assistant_model": "leave it out; there is no assisted decoding",
    "cache_implementation": "give past_key_values=make_cache(model, ...)",
}


@dataclass
class GenerateOutput:
    """What ``model.generate(..., return_dict_in_generate=True)`` returns.

    Attributes:
        sequences: (rows x num_return_sequences, length), int32: prompts and what follows; without the prompt where that
            was given as ``inputs_embeds``.
        scores: of each step, (rows or beams, vocabulary): logits, or with beams log-probabilities, as processed.
        logits: of each step, the model's own.
        sequences_scores: (rows x num_return_sequences,), of beams.
        past_key_values: the filled caches, one a layer.
        hidden_states, attentions: of each step, of each layer, as the model gives them: the first step's are the whole
            prompt's, the others' one token's.
    """

    sequences: mx.array
    scores: tuple[mx.array, ...] | None = None
    logits: tuple[mx.array, ...] | None = None
    sequences_scores: mx.array | None = None
    past_key_values: list[Any] | None = None
    hidden_states: tuple[tuple[mx.array, ...], ...] | None = None
    attentions: tuple[tuple[mx.array, ...], ...] | None = None


def read_options(arguments: dict[str, Any]) -> tuple[dict[str, Any], TensorOptions]:
    """``model.generate``'s arguments as (the model's inputs, the options).

    Raises:
        UsageError: for one that is not known, and for one that is and asks for what is not done.
    """
    known = {field.name for field in fields(TensorOptions)}
    inputs, options = {}, {}
    for name, value in arguments.items():
        if name in INPUTS:
            inputs[name] = value
        elif name in known:
            options[name] = value
        elif not (name in FIXED and any(value is fine or value == fine for fine in FIXED[name])):
            close = difflib.get_close_matches(name, [*known, *INPUTS], 1)
            advice = _INSTEAD.get(name) or (f"did you mean {close[0]}?" if close else "leave it out")
            raise UsageError(f"model.generate has no {name}={str(value)[:50]}; {advice.rstrip('.')}.")
    return inputs, TensorOptions(**options)


def generate_ids(model: FastVlmForConditionalGeneration, **arguments: Any) -> mx.array | GenerateOutput:
    """Generate from tensors; ``model.generate`` is this.

    Args:
        arguments: ``input_ids`` (rows, length), or ``inputs_embeds``; ``pixel_values``, ``attention_mask`` with padding
            on the left; ``past_key_values``, caches that hold the beginning of the prompts, which are given whole; and
            the fields of :class:`TensorOptions`.

    Returns:
        Prompts and what follows, (rows x num_return_sequences, length), int32; or a :class:`GenerateOutput`.

    Raises:
        UsageError: for an argument that is not known, or a value that it can't have.
    """
    inputs, options = read_options(arguments)
    decoder = Decoder(model, inputs, options)
    eos = options.eos_token_id if options.eos_token_id is not None else model.config.eos_token_id
    ends = [eos] if isinstance(eos, int) else list(eos)
    pad = options.pad_token_id if options.pad_token_id is not None else (ends or [0])[0]
    chain = LogitsChain(options, ends, decoder.prompt)
    run = beam_search if options.num_beams > 1 else _sample
    sequences, record = run(decoder, chain, options, ends, pad)
    if not options.return_dict_in_generate:
        return sequences
    return GenerateOutput(
        sequences,
        tuple(record.scores) if options.output_scores else None,
        tuple(record.logits) if options.output_logits else None,
        record.sequences_scores,
        decoder.caches,
        tuple(decoder.hidden_states) or None,
        tuple(decoder.attentions) or None,
    )


def _sample(
    decoder: Decoder, chain: LogitsChain, options: TensorOptions, ends: list[int], pad: int
) -> tuple[mx.array, Record]:
    """Token by token, each row by itself."""
    record = Record([], [])
    logits = decoder.read()
    if options.num_return_sequences > 1:
        decoder.repeat(options.num_return_sequences)
        logits = mx.repeat(logits, options.num_return_sequences, axis=0)
    left = options.new_tokens(decoder.prompt)
    open_rows = mx.ones((decoder.ids.shape[0],), mx.bool_)
    while True:
        scores = chain(decoder.ids, logits)
        record.scores += [scores] if options.output_scores else []
        record.logits += [logits] if options.output_logits else []
        chosen = mx.random.categorical(scores) if options.do_sample else mx.argmax(scores, axis=-1)
        chosen = mx.where(open_rows, chosen.astype(mx.int32), pad)
        decoder.ids = mx.concatenate([decoder.ids, chosen[:, None]], axis=1)
        open_rows = open_rows & ~stopped(decoder.ids, ends, options, record)
        left -= 1
        if left == 0 or not open_rows.any().item():
            return decoder.ids, record
        logits = decoder.step(chosen)
