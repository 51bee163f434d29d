"""Rows of many lengths as training batches: at random, sorted by length as the tuner has them, or packed.

    python benchmarks/packing.py --random 0.5b --layers 4
    python benchmarks/packing.py --random 0.5b --layers 4 --system 200    # tokens that all rows begin with

With a system prompt, the tuner runs it once for all rows of a batch. Packed, several rows stand one behind the other in
one long row, and a mask keeps them apart; without padding, but the attention goes over all of them. Each way runs
forward and backward over the same rows with LoRA of rank 8, in float32; so many layers of a released decoder stand for
all. The head is left out: it runs for the answers' tokens alone, which are the same in each way.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import mlx_fastvlm  # isort: skip  # noqa: F401  (before anything imports mlx, so that OpenBLAS is found)
import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_fastvlm import FastVlmConfig, FastVlmForConditionalGeneration
from mlx_fastvlm.checkpoints.adapters import AdapterConfig
from mlx_fastvlm.models.lora import add_adapters
from mlx_fastvlm.models.released import SHAPES, random_config
from mlx_fastvlm.tuner.batches import epoch
from mlx_fastvlm.tuner.opening import OpeningCache
from mlx_fastvlm.tuner.samples import Sample

IMAGE = 64  # tokens of an image of 512 pixels
ANSWER = 0.7  # of a row's text


def decoder(size: str, layers: int) -> FastVlmForConditionalGeneration:
    """The first layers of a released decoder, with random weights and adapters."""
    config = random_config(size).to_dict()
    config["text_config"] = {**config["text_config"], "num_hidden_layers": layers}
    model = FastVlmForConditionalGeneration(FastVlmConfig.from_dict(config))
    model.freeze()
    add_adapters(model, AdapterConfig(num_layers=-1, rank=8))
    mx.eval(model.language_model.parameters())
    return model.train()


def rows(count: int, spread: float, system: int) -> list[Sample]:
    """Lengths as data sets have them: a system prompt, an image, and a text of some 60 tokens, more or less."""
    texts = np.random.RandomState(0).lognormal(np.log(60), spread, count).astype(int).clip(8, 1000)
    before = system + IMAGE
    return [
        Sample((0,) * (before + n), ((before + int(n * (1 - ANSWER)), before + n),), (), "") for n in texts.tolist()
    ]


@dataclass
class Tokens:
    """A batch: of ``rows`` rows, so long, behind the tokens that they all begin with, if those are run once."""

    rows: int
    length: int
    learnt: mx.array
    mask: mx.array | str = "causal"
    opening: int = 0

    @property
    def computed(self) -> int:
        return self.opening + self.rows * self.length


def padded(batch: list[Sample], opening: int = 0) -> Tokens:
    """Rows that are padded on the right."""
    longest = max(len(sample.ids) for sample in batch) - opening
    learnt = [i * longest + place - opening for i, s in enumerate(batch) for place in range(*s.learnt[0])]
    return Tokens(len(batch), longest, mx.array(learnt), opening=opening)


def packed(batch: list[Sample]) -> Tokens:
    """One long row."""
    lengths = [len(sample.ids) for sample in batch]
    starts = np.cumsum([0, *lengths[:-1]])
    learnt = [start + place for start, s in zip(starts, batch) for place in range(*s.learnt[0])]
    number = np.repeat(np.arange(len(batch)), lengths)
    apart = np.tril(number[:, None] == number[None])
    return Tokens(1, len(number), mx.array(np.array(learnt, np.int32)), mx.array(apart)[None, None])


def bins(samples: list[Sample], length: int) -> list[list[Sample]]:
    """Rows in packs of at most so many tokens: the longest first, each where it fits first."""
    found: list[list[Sample]] = []
    free: list[int] = []
    for sample in sorted(samples, key=lambda s: -len(s.ids)):
        place = next((i for i, room in enumerate(free) if room >= len(sample.ids)), len(found))
        if place == len(found):
            found.append([])
            free.append(max(length, len(sample.ids)))
        found[place].append(sample)
        free[place] -= len(sample.ids)
    return found


def seconds(model, batches: list[Tokens]) -> float:
    """Of forward and backward passes over all batches."""
    hidden, layers = model.config.text_config.hidden_size, model.language_model.layers

    def loss(model, opening, x, batch):
        caches = [OpeningCache() if batch.opening else None for _ in layers]
        for layer, cache in zip(layers, caches):
            opening = layer(opening, "causal", cache) if batch.opening else opening
        for layer, cache in zip(layers, caches):
            x = layer(x, batch.mask, cache)
        return model.language_model.norm(x).flatten(0, 1)[batch.learnt].square().sum()

    gradients_of = nn.value_and_grad(model, loss)

    def run(some):
        for batch in some:
            opening = mx.random.normal((1, batch.opening, hidden))
            mx.eval(gradients_of(model, opening, mx.random.normal((batch.rows, batch.length, hidden)), batch))

    run(batches[:1])
    start = time.perf_counter()
    run(batches)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", choices=SHAPES, default="0.5b", help="shapes of the model (0.5b)")
    parser.add_argument("--layers", type=int, default=4, help="layers of its decoder (4)")
    parser.add_argument("--rows", type=int, default=64, help="rows to train on (64)")
    parser.add_argument("--batch-size", type=int, default=4, help="rows per batch (4)")
    parser.add_argument("--system", type=int, default=0, metavar="N", help="tokens that all rows begin with (0)")
    parser.add_argument("--spread", type=float, default=0.8, help="spread of the lengths' logarithm (0.8)")
    arguments = parser.parse_args()

    model = decoder(arguments.random, arguments.layers)
    samples = rows(arguments.rows, arguments.spread, arguments.system)
    lengths = np.array([len(sample.ids) for sample in samples])
    print(f"{len(samples)} rows of {lengths.min()} to {lengths.max()} tokens, {lengths.mean():.0f} on average\n")
    order, size = np.random.RandomState(1).permutation(len(samples)), arguments.batch_size
    by_length = epoch(samples, size, 0, 0)
    ways = {
        "at random": [padded([samples[i] for i in order[k : k + size]]) for k in range(0, len(order), size)],
        "sorted by length": [padded(batch) for batch in by_length],
        "and the system prompt once": [padded(batch, arguments.system) for batch in by_length],
        "packed": [packed(batch) for batch in bins(samples, int(lengths.mean() * size))],
    }
    if not arguments.system:
        del ways["and the system prompt once"]
    print("| batches | tokens computed | seconds |\n|---|---|---|")
    for name, batches in ways.items():
        computed = sum(batch.computed for batch in batches)
        print(f"| {name} | {computed} | {seconds(model, batches):.1f} |", flush=True)


if __name__ == "__main__":
    main()
