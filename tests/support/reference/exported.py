"""What convert.py writes for transformers, loaded by transformers itself.

    python -m tests.support.reference.exported     # with this package, torch, torchvision, timm and transformers

Each source goes the long way: its own layout -> mlx -> transformers' layout. transformers then has to load it with
nothing missing, unexpected or of another shape, cut and count the prompt's tokens as here, and compute the logits that
this package computes from the source itself: within 1e-4 standard deviations, with identical greedy tokens. Prints a
line for each source and fails if one does not hold.
"""

import sys
import tempfile
from pathlib import Path

from mlx_fastvlm import convert, load  # before mlx, so that OpenBLAS is found

from tests.support.reference import record  # noqa: F401, isort: skip  (makes timm importable)

import mlx.core as mx  # isort: skip
import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, FastVlmForConditionalGeneration
from transformers.utils.logging import disable_progress_bar

from tests.support import checkpoints, small

QUESTION = "What are these?"
LIMIT = 1e-4
GREEDY = 8
SOURCES = {
    "Apple": {"layout": "apple"},
    "Apple, sharded, with a copied lm_head": {"layout": "apple", "head": "copy", "shards": 3},
    "Apple, untied": {"layout": "apple", "head": "own"},
    "Apple, training form": {"layout": "apple", "training": True},
    "mlx-vlm": {"layout": "mlx-vlm"},
    "transformers": {"layout": "transformers"},
}


def greedy(model, ids, pixels):
    """The next tokens, each from the whole context."""
    ids = list(ids)
    for _ in range(GREEDY):
        ids.append(mx.argmax(model(mx.array([ids]), pixels, logits_to_keep=1).logits[0, -1]).item())
    return ids[-GREEDY:]


def check(name, source, folder):
    convert(source, folder / "mlx", dtype="float32")
    convert(folder / "mlx", folder / "hf", layout="transformers")
    theirs, report = FastVlmForConditionalGeneration.from_pretrained(
        folder / "hf", dtype=torch.float32, output_loading_info=True
    )
    strict = not any(report.values())
    image = Image.fromarray(small.odd_image(90, 60))
    processor = AutoProcessor.from_pretrained(folder / "hf")
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=image, text=text, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**inputs).logits[0].numpy()
        said = theirs.generate(**inputs, max_new_tokens=GREEDY, do_sample=False, eos_token_id=None, pad_token_id=0)[
            0, -GREEDY:
        ].tolist()

    pixels = mx.array(inputs["pixel_values"].numpy().transpose(0, 2, 3, 1))
    same_ids = inputs["input_ids"][0].tolist() == load(folder / "hf")[1].encode_chat(
        [{"role": "user", "content": f"<image>\n{QUESTION}"}]
    )
    model, here = load(source, dtype="float32")
    ids = here.encode_chat([{"role": "user", "content": f"<image>\n{QUESTION}"}])
    ours = np.array(model(mx.array([ids]), pixels).logits[0])
    error = np.abs(ours - expected[:, : ours.shape[1]]).max() / expected.std()
    same = greedy(model, ids, pixels) == said
    good = strict and same_ids and error <= LIMIT and same
    print(
        f"{name:40} loaded {'strictly' if strict else report}, {'same' if same_ids else 'OTHER'} prompt ids, "
        f"logits within {error:.1e}, greedy tokens {'identical' if same else 'DIFFER'}"
    )
    return good


def main():
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        sources = {name: checkpoints.write(folder / name / "source", **how) for name, how in SOURCES.items()}
        sources["demo"] = "demo"
        faults = sum(not check(name, source, folder / name) for name, source in sources.items())
        return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
