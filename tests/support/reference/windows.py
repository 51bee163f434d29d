"""Records what transformers' Qwen2Model makes of sliding windows, on weights that both sides make from their names.

    pip install torch transformers
    python -m tests.support.reference.windows

Writes windows.json: for each case samples of the last hidden state, of tokens that are no padding.
"""

import json
from pathlib import Path

import numpy as np

from tests.support import small

FILE = Path(__file__).with_suffix(".json")
FULL, SLIDING = "full_attention", "sliding_attention"
LENGTH, PADDING = 24, 7
CASES = {
    "no window": {},
    "all layers": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    "the later layers": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "the middle layer": {"use_sliding_window": True, "sliding_window": 4, "layer_types": [FULL, SLIDING, FULL]},
    "two layers of three": {"use_sliding_window": True, "sliding_window": 6, "layer_types": [SLIDING, FULL, SLIDING]},
    "only itself": {"use_sliding_window": True, "sliding_window": 1, "max_window_layers": 2},
    "a window of the whole": {"use_sliding_window": True, "sliding_window": LENGTH, "max_window_layers": 0},
    "a window of all but one": {"use_sliding_window": True, "sliding_window": LENGTH - 1, "max_window_layers": 0},
    "no size": {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
    "not used": {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 0},
}


def inputs():
    """Ids of two rows, the mask that says the second begins with padding, and the tokens' positions."""
    ids = np.random.RandomState(3).randint(1, small.TEXT["vocab_size"], (2, LENGTH))
    mask = np.ones((2, LENGTH), int)
    mask[1, :PADDING] = 0
    return ids, mask, np.maximum(mask.cumsum(axis=1) - 1, 0)


def sample(states, padding):
    """A few values of each token that is none."""
    return [float(x) for row, first in zip(states, (0, padding)) for x in np.asarray(row)[first:, ::16].reshape(-1)]


def main():
    import torch  # noqa: PLC0415  the tests need the cases only
    from tests.support.reference import operators  # noqa: F401, PLC0415  before timm  # isort: skip
    from transformers import Qwen2Config, Qwen2Model  # noqa: PLC0415  as above

    ids, mask, positions = (torch.from_numpy(x) for x in inputs())
    recorded = {}
    for name, case in CASES.items():
        model = Qwen2Model(Qwen2Config(**small.TEXT, **case)).eval()
        state = {key: torch.from_numpy(small.tensor(key, list(x.shape))) for key, x in model.state_dict().items()}
        model.load_state_dict(state)
        with torch.no_grad():
            plain = model(ids).last_hidden_state
            padded = model(ids, attention_mask=mask, position_ids=positions).last_hidden_state
        recorded[name] = {"plain": sample(plain, 0), "padded": sample(padded, PADDING)}
    FILE.write_text(json.dumps(recorded, indent=0) + "\n")


if __name__ == "__main__":
    main()
