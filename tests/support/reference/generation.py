"""What transformers' ``generate`` gives on the small model: greedy, beams, scores, and what sampling draws from.

    pip install ".[reference]"
    python -m tests.support.reference.generation

Writes generation.json: of each case the sequences, the beams' scores, and samples of the first step's scores; of
sampling, the probabilities of the first token.
"""

import json
from pathlib import Path

import numpy as np

from tests.support import small

FILE = Path(__file__).with_suffix(".json")
ENDS = [int(id) for id in np.random.RandomState(5).choice(np.arange(2, 320), 24, replace=False)]
CASES = {
    "greedy": {},
    "greedy, default length": {"max_new_tokens": None},
    "greedy that ends": {"eos_token_id": ENDS, "pad_token_id": 0, "max_new_tokens": 24},
    "greedy, at least": {"eos_token_id": ENDS, "pad_token_id": 0, "min_new_tokens": 9},
    "penalized": {"repetition_penalty": 1.7},
    "no pair twice": {"no_repeat_ngram_size": 2},
    "one token twice": {"no_repeat_ngram_size": 1},
    "two beams": {"num_beams": 2},
    "four beams, all returned": {"num_beams": 4, "num_return_sequences": 4},
    "beams that end": {"num_beams": 3, "eos_token_id": ENDS, "pad_token_id": 0, "num_return_sequences": 3},
    "beams that end early": {"num_beams": 3, "eos_token_id": ENDS, "pad_token_id": 0, "early_stopping": True},
    "beams that never stop": {"num_beams": 3, "eos_token_id": ENDS, "pad_token_id": 0, "early_stopping": "never"},
    "long beams": {"num_beams": 3, "eos_token_id": ENDS, "pad_token_id": 0, "length_penalty": 2.0},
    "short beams": {
        "num_beams": 3,
        "eos_token_id": ENDS,
        "pad_token_id": 0,
        "length_penalty": -1.0,
        "num_return_sequences": 2,
    },
    "penalized beams": {"num_beams": 2, "repetition_penalty": 1.4, "no_repeat_ngram_size": 3},
    "beams, one end": {"num_beams": 5, "eos_token_id": ENDS[0], "pad_token_id": 0, "num_return_sequences": 5},
}
SAMPLING = {
    "plain": {"top_k": 0},
    "top_k by default": {},
    "temperature": {"temperature": 0.5, "top_k": 0},
    "top_p": {"top_p": 0.6, "top_k": 0},
    "all": {"temperature": 1.5, "top_k": 40, "top_p": 0.8, "min_p": 0.02},
    "min_p": {"min_p": 0.2, "top_k": 0},
}
LENGTH = 12


def main():
    import torch  # noqa: PLC0415  the tests need the cases only
    from transformers import FastVlmConfig, FastVlmForConditionalGeneration  # noqa: PLC0415  as above

    config = {name: value for name, value in small.transformers_config().items() if name != "model_type"}
    model = FastVlmForConditionalGeneration(FastVlmConfig(**config)).eval()
    sizes = {name: list(value.shape) for name, value in model.state_dict().items()}
    state = {name: torch.from_numpy(np.array(small.tensor(name, size))) for name, size in sizes.items()}
    state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    model.load_state_dict(state)
    ids, mask, _ = (torch.from_numpy(x) for x in small.batch())
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.from_numpy(small.pixels(3))}
    how = {"return_dict_in_generate": True, "output_scores": True, "do_sample": False}
    recorded = {"cases": {}, "sampling": {}}
    with torch.no_grad():
        for name, case in CASES.items():
            out = model.generate(**inputs, **{"max_new_tokens": LENGTH, **how, **case})
            beams = getattr(out, "sequences_scores", None)
            recorded["cases"][name] = {
                "sequences": out.sequences.tolist(),
                "beams": None if beams is None else beams.tolist(),
                "steps": len(out.scores),
                "first": small.sample(out.scores[0].clamp(min=-1e4)).tolist(),
            }
            print(name, out.sequences.shape, flush=True)
        for name, case in SAMPLING.items():
            out = model.generate(**inputs, **{**how, "do_sample": True, "max_new_tokens": 1, **case})
            recorded["sampling"][name] = out.scores[0][0].softmax(-1).tolist()
    FILE.write_text(json.dumps(recorded) + "\n")


if __name__ == "__main__":
    main()
