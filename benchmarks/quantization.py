"""What quantization costs in right answers: the demo checkpoint in several precisions, asked about held-out pictures.

    python benchmarks/quantization.py [--questions 500]

prints a Markdown table. Each row is a conversion by convert.py's own code, evaluated by examples/demo/evaluate.py.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "demo"))

from evaluate import evaluate

from mlx_fastvlm import convert, load

VARIANTS = {
    "float16": {},
    "8 bits": {"quantize": True, "q_bits": 8},
    "6 bits": {"quantize": True, "q_bits": 6},
    "mixed 4 and 8 bits": {"quantize": True, "q_bits": 4, "q_mixed": True},
    "4 bits": {"quantize": True, "q_bits": 4},
    "mxfp4": {"quantize": True, "q_mode": "mxfp4"},
    "3 bits": {"quantize": True, "q_bits": 3},
    "2 bits": {"quantize": True, "q_bits": 2},
    "8 bits, vision too": {"quantize": True, "q_bits": 8, "q_vision": True},
    "4 bits, vision too": {"quantize": True, "q_bits": 4, "q_vision": True},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=500)
    questions = parser.parse_args().questions
    print("| precision | size | bits per weight | KL divergence | right answers |")
    print("|---|---|---|---|---|")
    for name, options in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "converted"
            report = convert("demo", target, **options)
            model, processor = load(target)
            right = evaluate(model, processor, questions, 1, {"max_tokens": 64})["right"]
        print(
            f"| {name} | {report.size_after / 1e6:.2f} MB | {report.bits_per_weight:.1f} | "
            f"{report.agreement.kl_divergence:.1e} | {right / questions:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
