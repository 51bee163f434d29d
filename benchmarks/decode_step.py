"""How long Python takes to build one decode step, beside mlx-lm's Qwen2 of the same shape.

    python benchmarks/decode_step.py             # the 0.5B decoder, 4 bits, on any machine

Nothing is computed but the caches' first tokens: what is timed is Python making the graph of one step, from a token
to its logits, which bounds decoding wherever a GPU is faster than that. The decoders run in turns; the table gives
medians.
"""

import argparse
import gc
import statistics
import time

import mlx_fastvlm  # noqa: F401, isort: skip  (before anything imports mlx, so that OpenBLAS is found)
import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.models import qwen2
from mlx_lm.models.cache import KVCache

from mlx_fastvlm import FastVlmForConditionalGeneration, make_cache
from mlx_fastvlm.generation.decoding import step
from mlx_fastvlm.models.forms import plain, specialize
from mlx_fastvlm.models.released import random_config

FILLED = 40  # tokens in the caches


def quantized(model):
    """In 4 bits, zeros: what is in the weights does not matter, and they are never read."""
    model.update(tree_map(lambda x: mx.zeros(x.shape, mx.bfloat16), model.parameters()))
    nn.quantize(model, group_size=64, bits=4)
    model.eval()
    return model


def theirs(size):
    """mlx-lm's decoder, its head included, and its caches."""
    text = random_config(size).text_config
    names = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "rms_norm_eps")
    shape = {name: getattr(text, name) for name in (*names, "vocab_size", "num_key_value_heads", "rope_theta")}
    model = quantized(qwen2.Model(qwen2.ModelArgs(model_type="qwen2", **shape)))
    return model, [KVCache() for _ in model.layers]


def ours(size):
    """This package's, with a tower of which nothing is computed."""
    model = FastVlmForConditionalGeneration(random_config(size))
    quantized(model.language_model)
    return model, make_cache(model)


def fill(caches, head_dim, kv_heads):
    for cache in caches:
        cache.update_and_fetch(*(mx.zeros((1, kv_heads, FILLED, head_dim), mx.bfloat16) for _ in range(2)))
    mx.eval([[cache.keys, cache.values] for cache in caches])


def milliseconds(build, caches, repeats):
    """The median time to build a step, each from the same caches; of this thread, whatever else runs."""
    kept = [(cache.keys, cache.values, cache.offset) for cache in caches]
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        build()
        times.append(time.thread_time() - start)
        for cache, (keys, values, offset) in zip(caches, kept):
            cache.keys, cache.values, cache.offset = keys, values, offset
    return statistics.median(times) * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-size", default="0.5b", choices=["0.5b", "1.5b", "7b"])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=40, help="steps per turn")
    arguments = parser.parse_args()
    text = random_config(arguments.model_size).text_config
    (reference, their_caches), (model, caches) = theirs(arguments.model_size), ours(arguments.model_size)
    for filled in (their_caches, caches):
        fill(filled, text.head_dim, text.num_key_value_heads)
    token = mx.array([5])
    rows = {
        "mlx-lm": (lambda: None, lambda: reference(token[None], their_caches)[:, -1], their_caches),
        "GPU forms": (lambda: specialize(model, mx.gpu), lambda: step(model, token, caches), caches),
        "CPU forms": (lambda: specialize(model, mx.cpu), lambda: step(model, token, caches), caches),
        "plain layers": (lambda: plain(model), lambda: step(model, token, caches), caches),
    }
    times = {name: [] for name in rows}
    gc.disable()  # its pauses fall anywhere
    for _ in range(arguments.turns):
        for name, (prepare, build, built) in rows.items():
            prepare()
            times[name].append(milliseconds(build, built, arguments.repeats))
        gc.collect()
    print("| decoder | ms to build a step | against mlx-lm |\n|---|---|---|")
    for name, values in times.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(values, times["mlx-lm"]))
        print(f"| {name} | {statistics.median(values):.2f} | {ratio:.2f}x |")


if __name__ == "__main__":
    main()
