"""The memory of a decoder's share: a released model's shapes, random weights on disk, over several processes.

    python benchmarks/sharding.py --random 1.5b --folder FOLDER
    mlx.launch -n 2 --backend ring -- python benchmarks/sharding.py --random 1.5b --folder FOLDER

The first writes the checkpoint (bfloat16) where it is missing, and prints what one process holds that loads it: the
decoder's layers, all weights, and the most that MLX and the process had meanwhile. The second prints the same for each
of two that share it.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import mlx_fastvlm  # noqa: F401  # isort: skip  (before anything imports mlx, so that OpenBLAS is found)
import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_fastvlm.models.released import SHAPES, random_model
from mlx_fastvlm.models.sharding import load_share


def size(parameters) -> float:
    return sum(x.nbytes for _, x in tree_flatten(parameters)) / 1e6


def peak_of_process() -> float:
    """In MB; getrusage counts bytes on macOS, and kilobytes on Linux."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--random", choices=SHAPES, default="1.5b")
    parser.add_argument("--folder", type=Path, required=True, help="folder of the checkpoint")
    args = parser.parse_args()
    group = mx.distributed.init()
    if not args.folder.exists():
        if group.size() > 1:
            raise SystemExit("sharding.py writes the checkpoint alone; run it without mlx.launch first")
        model, processor = random_model(args.random, mx.bfloat16)
        model.save_pretrained(args.folder, processor=processor)
        raise SystemExit(f"{args.folder} is written; run it again")  # in a process whose memory is its own
    before, start = peak_of_process(), time.perf_counter()
    model, _ = load_share(args.folder, group, dtype="bfloat16")
    layers = size([layer.parameters() for layer in model.language_model.layers])
    print(
        f"{args.random}, process {group.rank()} of {group.size()}: decoder layers {layers:.0f} MB, all weights "
        f"{size(model.parameters()):.0f} MB, in use {mx.get_active_memory() / 1e6:.0f} MB, at most "
        f"{mx.get_peak_memory() / 1e6:.0f} MB; the process at most {peak_of_process():.0f} MB, {before:.0f} MB before; "
        f"loaded in {time.perf_counter() - start:.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
