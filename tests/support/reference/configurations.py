"""60 random configurations of everything that a Qwen2 and a FastViT can have, as transformers' fast_vlm computes them.

    pip install ".[reference]"
    python -m tests.support.reference.configurations

Writes configurations.npz: of each the ``config.json`` that its ``save_pretrained`` writes, its tensors' shapes, and
samples of its logits and of its features. The weights are made from their names, on both sides.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from mlx_fastvlm.config.text import ACTIVATIONS
from tests.support import small

FILE = Path(__file__).with_suffix(".npz")
CASES, SIDE, IMAGE_TOKEN, VOCABULARY, TEXT = 60, 128, 95, 96, 33
ROPES = ("default", "linear", "dynamic", "yarn", "llama3")


def rope(random, kind, length):
    """``rope_parameters`` of a kind; some of what may be left out is."""
    values = {"rope_type": kind, "rope_theta": float(random.choice([500.0, 1e4, 1e6]))}
    if kind != "default":
        values["factor"] = float(random.choice([1.5, 2.0, 4.0]))
    if kind in ("yarn", "llama3"):
        values["original_max_position_embeddings"] = int(length // 2)
    if kind == "llama3":
        values |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind == "yarn" and random.rand() < 0.5:
        values |= [
            {"beta_fast": 16.0, "beta_slow": 2.0},
            {"attention_factor": 1.25},
            {"mscale": 1.0, "mscale_all_dim": 0.5},
            {"truncate": False},
        ][random.randint(4)]
    return values


def case(number):
    """The keyword arguments of ``FastVlmConfig``; everything a number decides, the same on every machine."""
    random = np.random.RandomState(1000 + number)
    stages = 2 + number % 4
    first = int(random.choice([16, 32]))
    widths = [first * 2**stage for stage in range(stages)]
    mixers = ["attention" if w % 32 == 0 and random.rand() < 0.3 else "repmixer" for w in widths]
    vision = {
        "layers": [int(random.randint(1, 3)) for _ in widths],
        "embed_dims": widths,
        "mlp_ratios": [int(random.choice([1, 2, 3])) for _ in widths],
        "token_mixers": mixers,
        "down_patch_size": int(random.choice([3, 5, 7, 9])),
        "repmixer_kernel_size": int(random.choice([3, 5, 7])),
        "se_downsamples": [bool(random.rand() < 0.4) for _ in widths],
        "lkc_use_act": bool(random.rand() < 0.7),
        "cls_ratio": float(random.choice([1.0, 2.0])),
    }
    if random.rand() < 0.4:
        vision["pos_embs"] = [None] * stages
    heads = int(random.choice([2, 4]))
    layers = int(random.randint(1, 4))
    length = int(random.choice([24, 64, 512]))
    text = {
        "model_type": "qwen2",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": int(random.choice([48, 64])),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": int(random.choice([1, heads])),
        "rms_norm_eps": float(random.choice([1e-6, 1e-5])),
        "max_position_embeddings": length,
        "hidden_act": ACTIVATIONS[number % len(ACTIVATIONS)],
        "rope_parameters": rope(random, ROPES[number % len(ROPES)], length),
    }
    if random.rand() < 0.5:
        text["head_dim"] = int(random.choice([4, 8, 24]))
    if random.rand() < 0.4:
        text |= {
            "use_sliding_window": True,
            "sliding_window": int(random.randint(2, 20)),
            "max_window_layers": int(random.randint(0, layers)),
        }
    return {
        "vision_config": {
            "model_type": "timm_wrapper",
            "architecture": "fastvit_mci3",
            "do_pooling": True,
            "global_pool": "avg",
            "hidden_size": int(widths[-1] * vision["cls_ratio"]),
            "model_args": {**vision, "inference_mode": bool(random.rand() < 0.8)},
        },
        "text_config": text,
        "image_token_index": IMAGE_TOKEN,
        "projector_hidden_act": ACTIVATIONS[int(random.randint(len(ACTIVATIONS)))],
        "multimodal_projector_bias": bool(random.rand() < 0.7),
        "tie_word_embeddings": bool(random.rand() < 0.5),
    }


def inputs(number, tokens):
    """Ids of one row with an image's placeholders, and its pixels, channels first."""
    random = np.random.RandomState(number)
    words = random.randint(1, IMAGE_TOKEN, TEXT)
    ids = np.concatenate([words[:5], [IMAGE_TOKEN] * tokens, words[5:]])
    return ids[None], random.random_sample((1, 3, SIDE, SIDE)).astype(np.float32)


def spread(values):
    """The deviation of what a sample is taken of, which differences are measured in, and the sample."""
    values = np.asarray(values, np.float32)
    return np.concatenate([[values.std()], small.sample(values)]).astype(np.float32)


def main():
    import torch  # noqa: PLC0415  the tests need the cases only
    from transformers import FastVlmConfig, FastVlmForConditionalGeneration  # noqa: PLC0415  as above

    configs, shapes, recorded = [], [], {}
    for number in range(CASES):
        model = FastVlmForConditionalGeneration(FastVlmConfig(**case(number))).eval()
        sizes = {name: list(value.shape) for name, value in model.state_dict().items()}
        state = {name: torch.from_numpy(np.array(small.tensor(name, size))) for name, size in sizes.items()}
        if "lm_head.weight" in state and model.config.tie_word_embeddings:
            state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
        model.load_state_dict(state)
        with torch.no_grad():
            features = model.get_image_features(torch.from_numpy(inputs(number, 1)[1])).pooler_output
            features = torch.cat(list(features)) if isinstance(features, (list, tuple)) else features
            tokens = features.reshape(-1, features.shape[-1]).shape[0]
            ids, pixels = inputs(number, tokens)
            logits = model(torch.from_numpy(ids), torch.from_numpy(pixels)).logits
        with tempfile.TemporaryDirectory() as folder:
            model.config.save_pretrained(folder)
            configs.append(json.loads((Path(folder) / "config.json").read_text()))
        dropped = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        shapes.append({name: x for name, x in sizes.items() if name not in dropped})
        recorded[f"features.{number}"], recorded[f"logits.{number}"] = spread(features), spread(logits)
        print(number, ids.shape[1], flush=True)
    np.savez_compressed(FILE, configs=json.dumps(configs), shapes=json.dumps(shapes), **recorded)


if __name__ == "__main__":
    main()
