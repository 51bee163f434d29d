"""Record adapters that PEFT wrote and what transformers answers with them, for tests that run without both.

    pip install torch timm transformers torchvision peft
    python -m tests.support.reference.peft_adapters

writes peft/lora and peft/dora beside this file, as PEFT's own ``save_pretrained`` leaves them, and logits.npz. Then it
has PEFT load what this package writes of them again, and prints how far the logits are apart.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from tests.support.reference.tuning import frozen_model  # isort: skip  (before peft: torchvision's missing parts)
import numpy as np
import peft
import torch

from mlx_fastvlm import load
from mlx_fastvlm.checkpoints.peft import write_peft
from mlx_fastvlm.models.lora import adapter_tensors, load_adapters
from tests.support import checkpoints, small

FOLDER = small.REFERENCE / "peft"
LAYERS = r".*(language_model\.layers\.[12]\.(self_attn\.[qv]_proj|mlp\.down_proj)|multi_modal_projector\.linear_1)"


def logits(model):
    """Of the recorded batch, with the last row's images."""
    ids, mask, positions = (torch.from_numpy(x) for x in small.batch())
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    with torch.no_grad():
        found = model(**inputs, pixel_values=torch.from_numpy(small.pixels(3))).logits
    return found[mask.bool()].numpy()


def trained(kind):
    """Adapters as after a training: with numbers that change what the model says."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=LAYERS, use_dora=kind == "dora", use_rslora=True)
    model = peft.get_peft_model(frozen_model(), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
            if "magnitude" in name:
                parameter.mul_(torch.empty_like(parameter).uniform_(0.8, 1.2))
    return model


def written_again(kind, target):
    """PEFT's adapters, read and written by this package."""
    with tempfile.TemporaryDirectory() as folder:
        model, _ = load(checkpoints.write(Path(folder), "transformers"), dtype="float32")
        config = load_adapters(model, FOLDER / kind)
        write_peft(target, config, adapter_tensors(model))


def main():
    recorded = {}
    for kind in ("lora", "dora"):
        model = trained(kind)
        recorded[kind] = logits(model)
        shutil.rmtree(FOLDER / kind, ignore_errors=True)
        model.save_pretrained(FOLDER / kind)
        (FOLDER / kind / "README.md").unlink()
        with tempfile.TemporaryDirectory() as again:
            written_again(kind, Path(again))
            found = logits(peft.PeftModel.from_pretrained(frozen_model(), again).eval())
        base = logits(frozen_model())
        changed = np.abs(recorded[kind] - base).max() / recorded[kind].std()
        apart = np.abs(found - recorded[kind]).max() / recorded[kind].std()
        print(f"{kind}: the adapters change the logits by {changed:.3f} deviations; written again, by {apart:.1e}")
    versions = f"peft {peft.__version__}, torch {torch.__version__}"
    np.savez_compressed(FOLDER / "logits.npz", **recorded, versions=np.array(versions))


if __name__ == "__main__":
    sys.exit(main())
