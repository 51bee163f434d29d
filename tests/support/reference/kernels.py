"""Records what timm's tower makes of an image without a GELU behind its large kernels (``lkc_use_act: false``).

    pip install torch timm
    python -m tests.support.reference.kernels

Writes kernels.json: in both forms, samples of every stage and of the features, channels last.
"""

import json
from pathlib import Path

from tests.support import small

FILE = Path(__file__).with_suffix(".json")


def main():
    from tests.support.reference import operators  # noqa: F401, PLC0415  before timm  # isort: skip
    import timm  # noqa: PLC0415  as above
    import torch  # noqa: PLC0415  tests need the path only

    prefix, pixels, recorded = "model.vision_tower.timm_model.", torch.from_numpy(small.pixels(1)), {}
    for form in ("inference", "training"):
        how = {**small.VISION, "inference_mode": form == "inference", "lkc_use_act": False, "num_classes": 0}
        tower = timm.create_model("fastvit_mci3", **how).eval()
        state = tower.state_dict()
        tower.load_state_dict({n: torch.from_numpy(small.tensor(prefix + n, list(x.shape))) for n, x in state.items()})
        outputs: list = []
        for stage in tower.stages:
            stage.register_forward_hook(lambda *a, outputs=outputs: outputs.append(a[2]))
        with torch.no_grad():
            outputs.append(tower.forward_features(pixels))
        recorded[form] = [small.sample(x.permute(0, 2, 3, 1).numpy()).tolist() for x in outputs]
    FILE.write_text(json.dumps(recorded, indent=0) + "\n")


if __name__ == "__main__":
    main()
