"""What quantization costs in right answers: the demo checkpoint in several precisions, asked about held-out pictures.

    python benchmarks/quantization.py [--questions 500] [VARIANT ...]

prints a Markdown table. Each row is a conversion by convert.py's own code, evaluated by examples/demo/evaluate.py.
"lost" and "won" count the questions that the float32 source answers right and the variant does not, and the reverse.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "demo"))

from evaluate import evaluate

from mlx_fastvlm import VisionCache, convert, load

VARIANTS = {
    "float16": {},
    "8 bits": {"quantize": True, "q_bits": 8},
    "6 bits": {"quantize": True, "q_bits": 6},
    "5 bits": {"quantize": True, "q_bits": 5},
    "4 bits": {"quantize": True, "q_bits": 4},
    "4 bits, groups of 128": {"quantize": True, "q_bits": 4, "q_group_size": 128},
    "mxfp4": {"quantize": True, "q_mode": "mxfp4"},
    "mixed 4 and 8 bits": {"quantize": True, "q_bits": 4, "q_mixed": True},
    "3 bits": {"quantize": True, "q_bits": 3},
    "mixed 3 and 8 bits": {"quantize": True, "q_bits": 3, "q_mixed": True},
    "2 bits": {"quantize": True, "q_bits": 2},
    "mixed 2 and 8 bits": {"quantize": True, "q_bits": 2, "q_mixed": True},
    "8 bits, vision too": {"quantize": True, "q_bits": 8, "q_vision": True},
    "4 bits, vision too": {"quantize": True, "q_bits": 4, "q_vision": True},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"{', '.join(VARIANTS)}; by default all")
    parser.add_argument("--questions", type=int, default=500)
    arguments = parser.parse_args()
    count, chosen = arguments.questions, arguments.variants or VARIANTS
    options = {"max_tokens": 64, "vision_cache": VisionCache()}  # most variants have the same tower

    def wrong_answers(folder):
        return {answer["seed"] for answer in evaluate(*load(folder), count, 1, options)["wrong"]}

    before = wrong_answers("demo")
    print("| precision | size | bits per weight | KL divergence | right answers | lost | won |")
    print("|---|---|---|---|---|---|---|")
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "converted"
            report = convert("demo", target, **VARIANTS[name])
            wrong = wrong_answers(target)
        print(
            f"| {name} | {report.size_after / 1e6:.2f} MB | {report.bits_per_weight:.1f} | "
            f"{report.agreement.kl_divergence:.1e} | {1 - len(wrong) / count:.1%} | {len(wrong - before)} | "
            f"{len(before - wrong)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
