"""Time to the first token of the first and the second answer of a kind, in a fresh process.

    python benchmarks/first_token.py [--repeats 5] [--model demo] [--cold]

Whatever an answer of that kind has to import or compile comes out as their ratio. Each row and repeat is a process of
its own, in which a greedy answer comes before the two: what any first answer costs, whatever its kind (memory touched
for the first time, Pillow's readers, the chat template), shows with `--cold` instead. Bounded and quantized caches need
mlx-lm, whose import is over before an answer's clock starts; the last column has it, as the seconds that it takes to
make the options.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

IMAGE = Path(__file__).parent.parent / "examples" / "images" / "shapes-1.png"
KINDS = {
    "greedy": {},
    "sampled": {"temperature": 0.7, "top_p": 0.9, "min_p": 0.05, "top_k": 40, "seed": 1},
    "penalised, biased": {"repetition_penalty": 1.1, "logit_bias": {1: -1.0}},
    "bounded": {"max_kv_size": 400},
    "quantized, 8 bits": {"kv_bits": 8},
    "bounded, 4 bits": {"max_kv_size": 400, "kv_bits": 4},
}
CHILD = """
import json, sys, time
from mlx_fastvlm import GenerationOptions, load, stream_generate
kind, model, image = eval(sys.argv[1]), *sys.argv[2:]
model, processor = load(model)
{warm}
start = time.perf_counter()
GenerationOptions(**kind)
made = time.perf_counter() - start
first = [next(stream_generate(model, processor, "What are these?", image, **kind)) for _ in range(2)]
print(json.dumps([*(response.time_to_first_token for response in first), made]))
"""
WARM = 'next(stream_generate(model, processor, "What are these?", image))'


def measure(kind: dict, model: str, repeats: int, warm: bool) -> list[float]:
    """Medians in seconds: of the first answer, of the second, of making the options."""
    command = [sys.executable, "-c", CHILD.format(warm=WARM if warm else ""), repr(kind), model, str(IMAGE)]
    runs = [json.loads(subprocess.check_output(command)) for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*runs)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="give no greedy answer first")
    arguments = parser.parse_args()
    print("| answer | first | second | ratio | options made in |\n|---|---|---|---|---|")
    for name, kind in KINDS.items():
        first, second, made = measure(kind, arguments.model, arguments.repeats, not arguments.cold)
        print(f"| {name} | {first:.3f} s | {second:.3f} s | {first / second:.2f} | {made:.2f} s |", flush=True)


if __name__ == "__main__":
    main()
