"""Time, memory and size of a conversion at the real models' shapes, with random weights.

    python benchmarks/conversion.py 7b --folder /some/large/disk --quantize --no-verify

makes a bfloat16 checkpoint of that size (1.3, 3.9 or 15.5 GB) in FOLDER, once, and converts it with the other options
in a process of its own, whose peak memory the operating system reports. The tokenizer is the demo checkpoint's,
since the real one is not part of this project.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_fastvlm import FastVlmForConditionalGeneration
from mlx_fastvlm.checkpoints.export import to_transformers
from mlx_fastvlm.checkpoints.weights import Weights, cast
from mlx_fastvlm.files import atomic_folder, write_json, write_tensors
from mlx_fastvlm.models.released import SHAPES, random_config, random_processor

ROOT = Path(__file__).parent.parent


def make(size: str, folder: Path):
    """Random weights of a released model's shapes, in transformers' layout."""
    config = random_config(size)
    config.dtype = "bfloat16"
    model = FastVlmForConditionalGeneration(config)  # its weights are drawn when they are written
    tensors = cast(dict(tree_flatten(model.parameters())), mx.bfloat16)
    del model
    with atomic_folder(folder) as unfinished:
        weights = Weights(tensors, {}, config.tie_word_embeddings, "random")
        weights, described = to_transformers(weights, config, random_processor(), unfinished)
        del tensors
        write_tensors(unfinished, weights.tensors, made_for="pt")
        write_json(unfinished / "config.json", described)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SHAPES)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="folder with enough room")
    arguments, options = parser.parse_known_args()  # the others are convert.py's
    source = arguments.folder / f"random-fastvlm-{arguments.size}"
    target = arguments.folder / f"random-fastvlm-{arguments.size}-converted"
    if not source.exists():  # in a process of its own: a child's peak on Linux is never below its parent's
        maker = multiprocessing.get_context("spawn").Process(target=make, args=(arguments.size, source))
        maker.start()
        maker.join()
    command = [sys.executable, ROOT / "convert.py", "--hf-path", source, "--mlx-path", target, "--force"]
    start = time.perf_counter()
    converting = subprocess.Popen([*map(str, command), *options])
    _, status, usage = os.wait4(converting.pid, 0)
    if status:
        sys.exit("the conversion failed")
    unit = 1 if sys.platform == "darwin" else 1024
    figures = {
        "size": arguments.size,
        "options": options,
        "seconds": round(time.perf_counter() - start, 1),
        "peak_memory_gb": round(usage.ru_maxrss * unit / 1e9, 2),
        "written_gb": round(sum(file.stat().st_size for file in target.glob("*.safetensors")) / 1e9, 3),
    }
    print(json.dumps(figures))
    shutil.rmtree(target)


if __name__ == "__main__":
    main()
