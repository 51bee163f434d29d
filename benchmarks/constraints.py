"""What a JSON schema costs: to compile, at each token, and of a step of FastVLM-0.5B's shapes; prints Markdown tables.

    python benchmarks/constraints.py [--turns N] [--tokens N]

The vocabulary is as large as Qwen2's and made up: bytes, and merges of what was there before, the likelier the more
they look like text. Let nothing else run beside it.
"""

import argparse
import dataclasses
import itertools
import json
import random
import statistics
import time

import mlx_fastvlm  # noqa: F401  before mlx, so that OpenBLAS is found

import mlx.core as mx  # isort: skip
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mlx_fastvlm import stream_generate
from mlx_fastvlm.generation.constraints import Grammar
from mlx_fastvlm.models.released import random_model

SIZE = 151_643  # Qwen2's, before its special tokens
SCHEMAS = {
    "a record of four fields": {
        "type": "object",
        "properties": {
            "shape": {"enum": ["circle", "square", "triangle", "star"]},
            "colour": {"type": "string", "maxLength": 40},
            "count": {"type": "integer", "minimum": 0, "maximum": 99},
            "boxes": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
        },
        "required": ["shape", "colour", "count", "boxes"],
        "additionalProperties": False,
    },
    "a free text": {"type": "string", "minLength": 500},
    "10,000 choices": {"enum": [f"article {number} of the catalogue" for number in range(10_000)]},
}


def vocabulary() -> Tokenizer:
    """Bytes, and merges of two that are there, until there are as many as Qwen2 has."""
    chance, letters = random.Random(0), sorted(pre_tokenizers.ByteLevel.alphabet())
    common = (
        "\u0120etaoinshrdlcumwfgypbvkETAOIN0123456789,.:{}[]\"'-_\u010a"  # a space and a line's end as bytes are spelt
    )
    known, merges, grown = {letter: id for id, letter in enumerate(letters)}, [], list(common)
    while len(known) < SIZE:
        pair = chance.choice(grown), chance.choice(common)
        if len(pair[0]) < 16 and "".join(pair) not in known:
            merges.append(pair)
            grown.append("".join(pair))
            known[grown[-1]] = len(known)
    tokenizer = Tokenizer(models.BPE(known, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"])
    return tokenizer


def timed(run):
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def masks(grammar: Grammar, ends: frozenset[int], most: int) -> list[float]:
    """Seconds of each token's mask along a random answer."""
    constraint, chance, seconds = grammar.begin(), random.Random(0), []
    for _ in range(most):
        took, words = timed(constraint.allowed)
        seconds.append(took)
        allowed = [
            32 * at + bit for at, word in enumerate(words.tolist()) if word for bit in range(32) if word >> bit & 1
        ]
        token = chance.choice(allowed)
        if token in ends:
            break
        took, _ = timed(lambda token=token: constraint.take(token))
        seconds[-1] += took
    return seconds


def step(model, processor, tokens: int, **options) -> float:
    """Seconds from one token to the next, the median."""
    moments = [
        time.perf_counter()
        for _ in stream_generate(
            model, processor, "What is this?", max_tokens=tokens, temperature=1.0, seed=1, **options
        )
    ]
    return statistics.median(after - before for before, after in itertools.pairwise(moments[1:]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    arguments = parser.parse_args()
    model, processor = random_model("0.5b", mx.float32)
    mx.eval(model.parameters())
    tokenizer = vocabulary()
    ends = frozenset({tokenizer.token_to_id("<|im_end|>")})
    processor = dataclasses.replace(processor, tokenizer=tokenizer, eos_token_ids=ends)
    width = model.config.text_config.vocab_size
    first, _ = timed(lambda: Grammar("regex", "a", processor, width))
    print(f"Tables of {tokenizer.get_vocab_size():,} tokens, once for a model: {first:.2f} s\n")
    print("| json_schema | to compile (ms) | a token, median (µs) | a token, 99th percentile (µs) |\n|---|---|---|---|")
    for name, schema in SCHEMAS.items():
        took, grammar = timed(lambda schema=schema: Grammar("json_schema", schema, processor, width))
        found = sorted(masks(grammar, ends, 300))
        late = found[int(len(found) * 0.99)] if len(found) > 1 else found[0]
        print(f"| {name} | {1e3 * took:.1f} | {1e6 * statistics.median(found):.0f} | {1e6 * late:.0f} |")
    free, kept = [], []
    text = json.dumps(SCHEMAS["a free text"])
    for _ in range(arguments.turns):
        free.append(step(model, processor, arguments.tokens))
        kept.append(step(model, processor, arguments.tokens, json_schema=text))
    free_step, kept_step = statistics.median(free), statistics.median(kept)
    print(
        f"\nA step of the decoder, 0.5B, float32: {1e3 * free_step:.1f} ms free, {1e3 * kept_step:.1f} ms with a "
        f"schema, ratio {kept_step / free_step:.3f}"
    )


if __name__ == "__main__":
    main()
