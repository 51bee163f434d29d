"""The parity check at full size, too slow for the test suite: FastVLM-0.5B's shapes, random weights, float32.

    python -m tests.support.reference.full_size record FOLDER    # with torch, timm and transformers; writes 2.7 GB
    python -m tests.support.reference.full_size compare FOLDER   # with this package
    python -m tests.support.reference.full_size drift FOLDER     # with this package; slow on a CPU

The first writes a checkpoint in transformers' layout and what transformers computes from it for a 1024 pixel image
and a prompt; the second loads it here and prints the differences in standard deviations, and fails above 1e-4. The
third prints how far bfloat16 strays from float32, stage by stage.
"""

# ruff: noqa: PLC0415  each command runs in an environment that has what it needs

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from tests.support import small

TEXT = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 152000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
IMAGE_TOKEN = 151646
IDS = [151644, 872, 198, *[IMAGE_TOKEN] * 256, 198, 3838, 525, 1493, 30, 151645, 198, 151644, 77091, 198]
GREEDY = 8
LIMIT = 1e-4


def image():
    """(1, 3, 1024, 1024) in [0, 1]: smooth colours with some noise."""
    y, x = np.mgrid[:1024, :1024] / 1024
    waves = np.stack([np.sin(9 * x + c) * np.cos(7 * y - c) for c in range(3)])
    noise = np.random.RandomState(0).random_sample(waves.shape)
    return (0.4 + 0.3 * waves + 0.2 * noise).clip(0, 1)[None].astype(np.float32)


def record(folder):
    import torch
    from safetensors.torch import save_file
    from transformers import FastVlmConfig, FastVlmForConditionalGeneration

    from tests.support.reference import record as recorder  # also makes timm importable

    config = small.transformers_config()
    config |= {"text_config": {"model_type": "qwen2", **TEXT}, "image_token_index": IMAGE_TOKEN}
    config["vision_config"] |= {"hidden_size": 3072, "model_args": {"inference_mode": True}}
    model = FastVlmForConditionalGeneration(FastVlmConfig(**{k: v for k, v in config.items() if k != "model_type"}))
    model = model.eval().float()
    recorder.fill(model.model, "model.")
    model.tie_weights()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    state = {name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(state, folder / "model.safetensors")

    ids, pixels = torch.tensor([IDS]), torch.from_numpy(image())
    with torch.no_grad():
        start = time.perf_counter()
        stages = recorder.stages(model.model.vision_tower.timm_model, pixels)
        print(f"torch's tower took {time.perf_counter() - start:.1f} s")
        out = model(input_ids=ids, pixel_values=pixels)
        greedy = model.generate(
            input_ids=ids,
            pixel_values=pixels,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=GREEDY,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=151643,
        )
    np.savez(
        folder / "reference.npz",
        **{f"stage{i}": x for i, x in enumerate(stages)},
        projected=out.image_hidden_states.numpy(),
        logits=out.logits[0, -16:].numpy(),
        greedy=greedy[0, len(IDS) :].numpy(),
    )


def compare(folder):
    import mlx_fastvlm  # noqa: F401, isort: skip  (before mlx, so that OpenBLAS is found)
    import mlx.core as mx

    from mlx_fastvlm import FastVlmForConditionalGeneration
    from mlx_fastvlm.cache.policy import make_cache

    reference = np.load(folder / "reference.npz")
    model = FastVlmForConditionalGeneration.from_pretrained(folder, dtype="float32")
    worst = 0.0

    def difference(name, ours):
        nonlocal worst
        theirs = reference[name]
        error = np.abs(np.array(ours) - theirs).max() / theirs.std()
        worst = max(worst, error)
        print(f"{name:10} {theirs.shape!s:20} {error:.1e}")

    pixels = mx.array(image().transpose(0, 2, 3, 1))
    start = time.perf_counter()
    out = model.vision_tower(pixels, output_hidden_states=True)
    mx.eval(out.last_hidden_state, out.hidden_states)
    print(f"the tower took {time.perf_counter() - start:.1f} s")
    for i, x in enumerate([*out.hidden_states, out.last_hidden_state]):
        difference(f"stage{i}", x)
    features = model.multi_modal_projector(out.last_hidden_state.flatten(1, 2))
    difference("projected", features)
    cache = make_cache(model)
    embeddings = model.embed(mx.array([IDS]), features)
    hidden = model.language_model(embeddings, cache=cache).last_hidden_state
    logits = model.logits(hidden[0, -16:])
    difference("logits", logits)
    tokens = [mx.argmax(logits[-1]).item()]
    while len(tokens) < GREEDY:
        step = model.get_input_embeddings()(mx.array([[tokens[-1]]]))
        hidden = model.language_model(step, cache=cache).last_hidden_state
        tokens.append(mx.argmax(model.logits(hidden[0, -1])).item())
    same = tokens == reference["greedy"].tolist()
    print(f"greedy tokens {'identical' if same else 'DIFFER'}: {tokens}")
    return 0 if worst <= LIMIT and same else 1


def drift(folder):
    import mlx_fastvlm  # isort: skip  (before mlx, so that OpenBLAS is found)
    import mlx.core as mx

    pixels, ids = mx.array(image().transpose(0, 2, 3, 1)), mx.array([IDS])

    def steps(dtype):
        model = mlx_fastvlm.FastVlmForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        out = model.vision_tower(pixels, output_hidden_states=True)
        for i, x in enumerate([*out.hidden_states, out.last_hidden_state]):
            yield f"stage{i}", np.array(x.astype(mx.float32))
        features = model.multi_modal_projector(out.last_hidden_state.flatten(1, 2))
        yield "projected", np.array(features.astype(mx.float32))
        out = model(ids, mm_encoder_outputs={"image": features}, output_hidden_states=True, logits_to_keep=16)
        for i in range(6, len(out.hidden_states), 6):
            yield f"layer{i}", np.array(out.hidden_states[i].astype(mx.float32))
        yield "logits", np.array(out.logits.astype(mx.float32))

    exact = dict(steps("float32"))
    for name, found in steps("bfloat16"):
        error = found - exact[name]
        print(f"{name:10} {np.sqrt(np.mean(error**2)) / exact[name].std():.1e}", flush=True)
        if name == "logits":
            print(f"same best token at {(found.argmax(-1) == exact[name].argmax(-1)).sum()} of 16 positions")
    return 0


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("step", choices=("record", "compare", "drift"))
    arguments.add_argument("folder", type=Path)
    chosen = arguments.parse_args()
    sys.exit({"record": record, "compare": compare, "drift": drift}[chosen.step](chosen.folder))
