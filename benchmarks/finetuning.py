"""Memory and time of fine-tuning steps, with random weights of a released model's shapes.

    python benchmarks/finetuning.py --random 0.5b --image-size 1024 --steps 2

One row: an image, a question, and an answer of --answer tokens. A line for each way to train; memory is MLX's peak
during the steps, with the weights in it, after the image's features were computed, and beside it stands what
`estimate` makes of the shapes alone. Each way runs in a process of its own. `--estimate` only does that sum, for any
size:

    python benchmarks/finetuning.py --random 7b --dtype bfloat16 --estimate
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import subprocess
import sys
import time

import mlx_fastvlm  # isort: skip  # noqa: TC001  (before anything imports mlx, so that OpenBLAS is found)
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from PIL import Image

from mlx_fastvlm.checkpoints.adapters import AdapterConfig
from mlx_fastvlm.checkpoints.weights import DTYPES
from mlx_fastvlm.models.released import SHAPES, random_config, random_model
from mlx_fastvlm.tuner import Report, TrainingOptions, train
from mlx_fastvlm.tuner.fusing import quantize_model
from mlx_fastvlm.tuner.samples import Sample

WAYS = {
    "lora": {},
    "lora, checkpointed": {"grad_checkpoint": True},
    "dora, checkpointed": {"kind": "dora", "grad_checkpoint": True},
    "lora on 4 bits, checkpointed": {"bits": 4, "grad_checkpoint": True},
}


TOWER, FEATURES = 122_654_496, 3072  # its weights, and the width of what it gives
PROMPT = 32  # tokens around the image, with this tokenizer and question
RANK = 8  # the adapters' default
HEAD = 4  # arrays of all logits that exist at once: themselves, in float32, their softmax and its gradient
INSIDE = 6  # arrays of a layer's wide activations that exist at once while its gradients are made


def estimate(size: str, dtype: mx.Dtype, tokens: int, answer: int, bits: int | None, checkpointed: bool) -> dict:
    """Gigabytes of the weights, and of the peak with adapters in all of the decoder's layers; from the shapes alone."""
    config = random_config(size)
    text, wide = config.text_config, config.text_config.intermediate_size
    hidden, kv = text.hidden_size, text.num_key_value_heads * text.head_dim
    pairs = ((hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden), *[(hidden, wide)] * 3)
    decoder = text.num_hidden_layers * sum(a * b for a, b in pairs) + text.vocab_size * hidden
    decoder += 0 if config.tie_word_embeddings else text.vocab_size * hidden
    per_weight = (bits + 2 * 8 * dtype.size / 64) / 8 if bits else dtype.size  # a scale and a bias for 64 of them
    weights = decoder * per_weight + (TOWER + (FEATURES + hidden) * hidden) * dtype.size
    adapters = text.num_hidden_layers * sum(a + b for a, b in pairs) * RANK * 4 * 4  # themselves, gradients, and Adam's
    inside = INSIDE * tokens * wide * dtype.size
    kept = text.num_hidden_layers * (tokens * hidden * dtype.size if checkpointed else inside)
    logits = HEAD * answer * text.vocab_size * 4
    return {"weights": weights / 1e9, "peak": (weights + adapters + kept + inside + logits) / 1e9}


def sample(processor: mlx_fastvlm.FastVlmProcessor, size: int, answer: int) -> Sample:
    """A row with a random image."""
    pixels = np.random.RandomState(0).randint(0, 255, (size, size, 3), np.uint8)
    image = processor.prepare(Image.fromarray(pixels), size)[0]
    prompt = processor.encode_chat([{"role": "user", "content": "<image>\nWhat is this?"}], image_size=size)
    ids = (*prompt, *range(100, 100 + answer))
    return Sample(ids, ((len(prompt), len(ids)),), (encoded(image.pixels),), "the row")


def encoded(pixels: np.ndarray) -> str:
    """A data: URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def measure(way: str, arguments: argparse.Namespace) -> dict:
    """Trains in this process."""
    how = dict(WAYS[way])
    model, processor = random_model(arguments.random, DTYPES[arguments.dtype])
    bits, kind = how.pop("bits", None), how.pop("kind", "lora")
    if bits:
        quantize_model(model, bits)
    mx.eval(model.parameters())
    weights = sum(x.nbytes for _, x in tree_flatten(model.parameters())) / 1e9
    row, starts, seconds = sample(processor, arguments.image_size, arguments.answer), [0.0], []

    def features_done(step: str, done: int, total: int):
        mx.clear_cache()
        mx.reset_peak_memory()
        starts[0] = time.perf_counter()

    def report(told: Report):
        now = time.perf_counter()
        seconds.append(now - starts[0])
        starts[0] = now

    options = TrainingOptions(
        adapters=AdapterConfig(kind, num_layers=-1),
        iters=arguments.steps,
        batch_size=1,
        steps_per_report=1,
        image_size=arguments.image_size,
        **how,
    )
    train(model, processor, [row], [], options, report=report, progress=features_done)
    return {"weights": weights, "peak": mx.get_peak_memory() / 1e9, "seconds": min(seconds)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", choices=SHAPES, default="0.5b", help="shapes of the model (0.5b)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="type of the weights (float32)")
    parser.add_argument("--image-size", type=int, default=1024, help="side of the image in pixels (1024)")
    parser.add_argument("--answer", type=int, default=64, help="tokens in the answer (64)")
    parser.add_argument("--steps", type=int, default=2, help="steps to measure (2)")
    parser.add_argument("--estimate", action="store_true", help="only estimate; run nothing")
    parser.add_argument("--way", choices=tuple(WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments)))
        return
    tokens = arguments.answer + PROMPT + (arguments.image_size // 64) ** 2
    print(f"{tokens} tokens\n\n| | weights | peak, estimated | peak | a step |\n|---|---|---|---|---|")
    for way, how in WAYS.items():
        shape = (arguments.random, DTYPES[arguments.dtype], tokens, arguments.answer)
        sums = estimate(*shape, how.get("bits"), how.get("grad_checkpoint", False))
        found = {} if arguments.estimate else run(way)
        weights = found.get("weights", sums["weights"])
        seen = f"{found['peak']:.2f} GB | {found['seconds']:.1f} s" if found else "| "
        print(f"| {way} | {weights:.2f} GB | {sums['peak']:.2f} GB | {seen} |", flush=True)


def run(way: str) -> dict:
    """What a process of its own measures."""
    command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{way} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
