"""Ask the same question about every image in a folder, several at a time.

    python examples/batch_folder.py photos --model apple/FastVLM-0.5B --prompt "Describe the image." --batch-size 8

For large folders there is `python -m mlx_fastvlm.caption photos --output captions.jsonl`, which continues where it
stopped after an interruption.
"""

import argparse
import time
from pathlib import Path

from mlx_fastvlm import batch_generate, load

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent / "images")
parser.add_argument("--model", default="demo", help="a folder, a hub id or demo (%(default)s)")
parser.add_argument("--prompt", default="Describe the image.", help="the question (%(default)s)")
parser.add_argument("--batch-size", type=int, default=4, help="images at a time (%(default)s)")
arguments = parser.parse_args()

images = sorted(file for file in arguments.folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
if not images:
    parser.error(f"{arguments.folder} has no JPEG or PNG images")

model, processor = load(arguments.model)
start = time.perf_counter()
for first in range(0, len(images), arguments.batch_size):
    group = images[first : first + arguments.batch_size]
    # Each answer is what its image would get alone; together they share the reading of the weights.
    answers = batch_generate(model, processor, [arguments.prompt] * len(group), [str(file) for file in group])
    for file, answer in zip(group, answers):
        print(f"{file.name}: {answer}", flush=True)
print(f"{len(images) / (time.perf_counter() - start):.2f} images a second")
