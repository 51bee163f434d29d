"""What quantization costs in right answers: the demo checkpoint in several precisions, asked about held-out images.

    python benchmarks/quantization.py [--questions 500] [VARIANT ...]

prints a Markdown table. Each row is a conversion by convert.py's own code, evaluated by examples/demo/evaluate.py.
"lost" and "won" count the questions that the float32 source answers right and the variant does not, and the reverse.
The KL divergence from the source is the mean over the tokens of the right answers to as many questions.

"GPTQ" was calibrated on 64 conversations about images of the training set.

On a CPU the weights are unpacked to float32 before they are evaluated: the same numbers, and much faster there.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "demo"))

from evaluate import PIXELS, conversation, evaluate

import scenes
from mlx_fastvlm import VisionCache, convert, load
from mlx_fastvlm.tuner import calibration, read_conversations

import mlx.core as mx  # isort: skip  (after the package, so that OpenBLAS is found)

VARIANTS = {
    "float16": {},
    "8 bits": {"quantize": True, "q_bits": 8},
    "6 bits": {"quantize": True, "q_bits": 6},
    "5 bits": {"quantize": True, "q_bits": 5},
    "4 bits": {"quantize": True, "q_bits": 4},
    "4 bits, groups of 128": {"quantize": True, "q_bits": 4, "q_group_size": 128},
    "4 bits, GPTQ": {"quantize": True, "q_bits": 4, "q_gptq": True},
    "mxfp4": {"quantize": True, "q_mode": "mxfp4"},
    "nvfp4": {"quantize": True, "q_mode": "nvfp4"},
    "mxfp8": {"quantize": True, "q_mode": "mxfp8"},
    "mixed 4 and 8 bits": {"quantize": True, "q_bits": 4, "q_mixed": True},
    "3 bits": {"quantize": True, "q_bits": 3},
    "3 bits, GPTQ": {"quantize": True, "q_bits": 3, "q_gptq": True},
    "mixed 3 and 8 bits": {"quantize": True, "q_bits": 3, "q_mixed": True},
    "2 bits": {"quantize": True, "q_bits": 2},
    "2 bits, GPTQ": {"quantize": True, "q_bits": 2, "q_gptq": True},
    "mixed 2 and 8 bits": {"quantize": True, "q_bits": 2, "q_mixed": True},
    "8 bits, vision too": {"quantize": True, "q_bits": 8, "q_vision": True},
    "4 bits, vision too": {"quantize": True, "q_bits": 4, "q_vision": True},
}


def conversations(folder):
    """A data set of 64 images that the demo was trained on, three questions and answers each."""
    rows = []
    for seed in scenes.TRAINING_SEEDS[:64]:
        scene = scenes.make_scene(seed)
        scenes.draw(scene, PIXELS).save(folder / f"{seed}.png")
        messages = []
        for question in conversation(scene, 3):
            messages.append({"role": "user", "content": question.text})
            messages.append({"role": "assistant", "content": question.answer})
        messages[0]["content"] = f"<image>\n{messages[0]['content']}"
        rows.append(json.dumps({"images": [f"{seed}.png"], "messages": messages}))
    (folder / "train.jsonl").write_text("\n".join(rows))
    return folder


def predictions(model, processor, count):
    """Log-probabilities of every next token, along the right answers to held-out questions: (tokens, vocabulary)."""
    rows = []
    for seed in scenes.HELD_OUT_SEEDS[:count]:
        scene = scenes.make_scene(seed)
        (question,) = conversation(scene, 1)
        ids = processor.encode_chat([{"role": "user", "content": f"<image>\n{question.text}"}])
        answer = processor.encode(f"{question.answer}<|im_end|>")
        pixels = processor.preprocess(scenes.draw(scene, PIXELS))
        logits = model(mx.array([ids + answer[:-1]]), pixels, logits_to_keep=len(answer)).logits[0].astype(mx.float32)
        rows.append(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        mx.eval(rows)
    return mx.concatenate(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"{', '.join(VARIANTS)}; all by default")
    parser.add_argument("--questions", type=int, default=500)
    arguments = parser.parse_args()
    count, chosen = arguments.questions, arguments.variants or VARIANTS
    options = {"max_tokens": 64, "vision_cache": VisionCache()}  # most variants have the same tower

    def measure(folder):
        """Predictions, and the seeds of the questions whose answers are wrong."""
        model, processor = load(folder)
        wrong = {answer["seed"] for answer in evaluate(model, processor, count, 1, options)["wrong"]}
        return predictions(model, processor, count), wrong

    expected, wrong_before = measure("demo")
    print("| precision | size | bits per weight | KL divergence | right answers | lost | won |")
    print("|---|---|---|---|---|---|---|")
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "converted"
            wanted = dict(VARIANTS[name])
            if wanted.get("q_gptq"):
                wanted["q_gptq"] = calibration(read_conversations(conversations(Path(folder)), "train"))
            report = convert("demo", target, verify=False, **wanted)
            if "quantize" in VARIANTS[name] and mx.default_device().type == mx.DeviceType.cpu:
                packed, target = target, Path(folder) / "unpacked"
                convert(packed, target, dequantize=True, dtype="float32", verify=False)
            found, wrong = measure(target)
        divergence = (mx.exp(expected) * (expected - found)).sum(axis=-1).mean().item()
        cells = [
            f"{report.size_after / 1e6:.2f} MB",
            f"{report.bits_per_weight:.1f}",
            f"{divergence:.1e}",
            f"{1 - len(wrong) / count:.1%}",
            f"{len(wrong - wrong_before)}",
            f"{len(wrong_before - wrong)}",
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
