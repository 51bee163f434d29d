"""The 60 random configurations, saved from here in transformers' layout and loaded by transformers.

    pip install ".[reference]"
    python -m tests.support.reference.configurations_back

Each has to load with nothing missing, unexpected or of another shape, and to compute the logits that are computed here,
within 1e-4 standard deviations. Prints a line for each, and fails if one does not hold. What transformers' layout can't
hold is refused here, by its reason.
"""

import json
import sys
import tempfile
from pathlib import Path

from mlx_fastvlm import FastVlmForConditionalGeneration as Ours  # before mlx, so that OpenBLAS is found

from tests.support.reference import record  # noqa: F401, isort: skip  (makes timm importable)

import mlx.core as mx  # isort: skip
import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import FastVlmForConditionalGeneration as Theirs
from transformers.utils.logging import disable_progress_bar

from tests.support import small
from tests.support.reference.configurations import CASES, FILE, SIDE, inputs

LIMIT = 1e-4


def check(number, config, shapes, folder):
    """Whether it holds, in words; None where it is refused."""
    source, saved = folder / "source", folder / "saved"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    tensors = {name: np.ascontiguousarray(small.tensor(name, shape)) for name, shape in shapes.items()}
    save_file(tensors, source / "model.safetensors")
    model = Ours.from_pretrained(source, dtype="float32")
    try:
        model.save_pretrained(saved, layout="transformers")
    except ValueError as error:
        return None, f"refused: {error}"
    theirs, report = Theirs.from_pretrained(saved, dtype=torch.float32, output_loading_info=True)
    ids, pixels = inputs(number, (SIDE // model.config.vision_config.patch_size) ** 2)
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(ids), torch.from_numpy(pixels)).logits.numpy()
    found = np.array(model(mx.array(ids), mx.array(pixels.transpose(0, 2, 3, 1))).logits)
    far = np.abs(found - expected).max() / expected.std()
    strict = not any(report.values())
    return strict and far < LIMIT, f"{far:.1e}, loaded {'strictly' if strict else report}"


def main():
    disable_progress_bar()
    recorded = np.load(FILE)
    configs, shapes = (json.loads(str(recorded[name])) for name in ("configs", "shapes"))
    outcomes = []
    for number in range(CASES):
        with tempfile.TemporaryDirectory() as folder:
            good, said = check(number, configs[number], shapes[number], Path(folder))
        outcomes.append(good)
        print(number, said, flush=True)
    print(f"{outcomes.count(True)} equal, {outcomes.count(None)} refused, {outcomes.count(False)} different")
    return int(False in outcomes)


if __name__ == "__main__":
    sys.exit(main())
