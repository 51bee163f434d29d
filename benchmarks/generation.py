"""What the options of generation cost and save on this machine; prints Markdown tables.

    python benchmarks/generation.py [memory] [batches] [follow-ups]

The first runs the demo checkpoint for 10,000 tokens; the others FastVLM-0.5B's shapes with random weights, float32
(2.6 GB), since only the sizes matter for the time. Let nothing else run beside it.
"""

import dataclasses
import sys
import time

import mlx_fastvlm  # before mlx, so that OpenBLAS is found

import mlx.core as mx  # isort: skip
import numpy as np  # isort: skip
from PIL import Image  # isort: skip

from mlx_fastvlm import (
    ChatSession,
    FastVlmForConditionalGeneration,
    PromptCache,
    VisionCache,
    batch_generate,
    stream_generate,
)
from mlx_fastvlm.models.forms import specialize
from mlx_fastvlm.models.released import random_config, random_processor

LONG = 10_000  # tokens
WINDOW = 512


def draw(number, side=1024):
    """Noise, so that nothing about it is easy."""
    return Image.fromarray(np.random.RandomState(number).randint(0, 256, (side, side, 3), np.uint8))


def endless(processor, **settings):
    """A processor for answers that go on to max_tokens."""
    images = dataclasses.replace(processor.image_settings, **settings)
    return dataclasses.replace(processor, eos_token_ids=frozenset(), image_settings=images)


def released_shape():
    """FastVLM-0.5B with random weights, and the demo's tokenizer."""
    processor = random_processor()
    config = dataclasses.replace(random_config("0.5b"), image_token_id=processor.image_token_id)
    model = specialize(FastVlmForConditionalGeneration(config))
    mx.eval(model.parameters())
    return model, endless(processor)


def memory():
    print(f"| KV cache | of {LONG // 10} tokens | of {LONG} tokens | MLX's memory after {LONG} | tokens/s |")
    print("|---|---|---|---|---|")
    model, processor = mlx_fastvlm.load("demo")
    processor = endless(processor)
    prompt = next(stream_generate(model, processor, "What is this?", draw(0), max_tokens=1)).prompt_tokens
    bound = prompt + WINDOW
    for name, policy in {
        f"bounded to {bound}": {"max_kv_size": bound},
        f"bounded to {bound}, 8 bits": {"max_kv_size": bound, "kv_bits": 8},
        f"bounded to {bound}, 4 bits": {"max_kv_size": bound, "kv_bits": 4},
        "unbounded": {},
        "8 bits": {"kv_bits": 8},
        "4 bits": {"kv_bits": 4},
    }.items():
        cache, sizes = PromptCache(**policy), {}
        before = mx.get_active_memory()
        for r in stream_generate(model, processor, "What is this?", draw(0), max_tokens=LONG, prompt_cache=cache):
            if r.generation_tokens in (LONG // 10, LONG):
                sizes[r.generation_tokens] = cache.nbytes / 1e6
        used = (mx.get_active_memory() - before) / 1e6
        cells = [f"{sizes[LONG // 10]:.2f} MB", f"{sizes[LONG]:.2f} MB", f"{used:.2f} MB", f"{r.generation_tps:.0f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def batches():
    print("| batch_size | answers' tokens/s, all rows together |")
    print("|---|---|")
    model, processor = released_shape()
    prompts, images, tokens = ["What is this?"] * 16, [draw(i) for i in range(16)], 16
    cache = VisionCache()
    options = {"max_tokens": tokens, "image_size": 256, "vision_cache": cache}
    batch_generate(model, processor, prompts, images, **(options | {"max_tokens": 1}))  # the tower is not the point
    for size in (1, 2, 4, 8, 16):
        start = time.perf_counter()
        batch_generate(model, processor, prompts, images, batch_size=size, **options)
        print(f"| {size} | {16 * tokens / (time.perf_counter() - start):.1f} |", flush=True)


def follow_ups():
    print("| question | prompt tokens | of them cached | first token after |")
    print("|---|---|---|---|")
    session = ChatSession(*released_shape(), max_tokens=8)
    for name, text, image in (
        ("the first, with an image", "What is this?", draw(0)),
        ("a follow-up", "What colour is it?", None),
        ("another", "Where is it?", None),
    ):
        last = list(session.stream(text, image))[-1]
        counts = f"{last.prompt_tokens} | {last.cached_tokens}"
        print(f"| {name} | {counts} | {last.time_to_first_token:.2f} s |", flush=True)
    session.reset()
    last = list(session.stream("Is it big?", draw(0)))[-1]
    counts = f"{last.prompt_tokens} | {last.cached_tokens}"
    print(f"| the same image in a new conversation | {counts} | {last.time_to_first_token:.2f} s |")


TABLES = {"memory": memory, "batches": batches, "follow-ups": follow_ups}

if __name__ == "__main__":
    for table in sys.argv[1:] or TABLES:
        TABLES[table]()
        print()
