"""The memory of a decoder's share: random weights of a released model's shapes, over several processes.

    mlx.launch -n 2 --backend ring -- python benchmarks/sharding.py --random 1.5b

Each process prints what it holds after ``shard``, the decoder's layers and all, and the most that it held meanwhile.
Alone (without mlx.launch) it prints the same for the whole model.
"""

import argparse

import mlx_fastvlm  # noqa: F401  # isort: skip  (before anything imports mlx, so that OpenBLAS is found)
import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_fastvlm.models.released import SHAPES, random_model
from mlx_fastvlm.models.sharding import shard


def size(parameters) -> float:
    return sum(x.nbytes for _, x in tree_flatten(parameters)) / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--random", choices=SHAPES, default="1.5b")
    args = parser.parse_args()
    group = mx.distributed.init()
    model, _ = random_model(args.random, mx.bfloat16)
    shard(model, group)
    layers = size([layer.parameters() for layer in model.language_model.layers])
    print(
        f"{args.random}, process {group.rank()} of {group.size()}: decoder layers {layers:.0f} MB, all weights "
        f"{size(model.parameters()):.0f} MB, in use {mx.get_active_memory() / 1e6:.0f} MB, at most "
        f"{mx.get_peak_memory() / 1e6:.0f} MB",
        flush=True,
    )


if __name__ == "__main__":
    main()
