"""Memory and time of fine-tuning steps, with random weights of a released model's shapes.

    python benchmarks/finetuning.py --random 0.5b --image-size 1024 --steps 2

One row: an image, a question, and an answer of --answer tokens. A line for each way to train; memory is MLX's peak
during the steps, with the weights in it, after the image's features were computed. Each way runs in a process of its
own.
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
from mlx_fastvlm.models.released import SHAPES, random_model
from mlx_fastvlm.tuner import Report, TrainingOptions, train
from mlx_fastvlm.tuner.fusing import quantize_model
from mlx_fastvlm.tuner.samples import Sample

WAYS = {
    "lora": {},
    "lora, checkpointed": {"grad_checkpoint": True},
    "dora, checkpointed": {"kind": "dora", "grad_checkpoint": True},
    "lora on 4 bits, checkpointed": {"bits": 4, "grad_checkpoint": True},
}


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
    return {"tokens": len(row.ids), "weights": weights, "peak": mx.get_peak_memory() / 1e9, "seconds": min(seconds)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", choices=SHAPES, default="0.5b", help="(0.5b)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="(float32)")
    parser.add_argument("--image-size", type=int, default=1024, help="(1024)")
    parser.add_argument("--answer", type=int, default=64, help="tokens (64)")
    parser.add_argument("--steps", type=int, default=2, help="(2)")
    parser.add_argument("--way", choices=tuple(WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments)))
        return
    print(f"{'':30} {'tokens':>7} {'weights':>9} {'peak':>9} {'a step':>9}")
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{way:30} failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        memory = f"{found['weights']:6.2f} GB {found['peak']:6.2f} GB"
        print(f"{way:30} {found['tokens']:7} {memory} {found['seconds']:7.1f} s", flush=True)


if __name__ == "__main__":
    main()
