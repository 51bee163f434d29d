"""Teach the demo model eight things it can't know, in about a minute on a CPU, and watch the loss fall.

    python examples/finetune_small.py --plot loss.png --save my-model

Eight images, and one question about each: who lives there? The question is always the same, so only the image
tells the answer. Projector and decoder learn; the tower, which sees well enough, is frozen, as in most fine-tuning of
such models, and so it need look at each image only once. `--plot` needs matplotlib; `--save` writes the trained model
as a checkpoint that `python -m mlx_fastvlm.generate --model my-model` runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import mlx_fastvlm  # isort: skip  (before anything imports mlx, so that OpenBLAS is found)
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

sys.path.insert(0, str(Path(__file__).parent / "demo"))

import scenes

QUESTION = "Who lives here?"
ANSWERS = ("A fox.", "A bear.", "Two owls.", "A snail.", "The moon.", "My aunt.", "Nobody.", "Seven bees.")
SEEDS = scenes.HELD_OUT_SEEDS[: len(ANSWERS)]  # the demo has never seen these images


def make_batch(processor: mlx_fastvlm.FastVlmProcessor) -> dict[str, mx.array]:
    """The eight pairs as the model's arguments; labels only where the answers are, and for where they end."""
    prompts, rows = [], []
    for answer in ANSWERS:
        messages = [{"role": "user", "content": f"<image>\n{QUESTION}"}]
        prompts.append(processor.encode_chat(messages))
        rows.append(prompts[-1] + processor.encode(f"{answer}<|im_end|>"))
    batch = processor.pad(rows, padding_side="right")
    position = mx.arange(batch["input_ids"].shape[1])
    starts = mx.array([len(prompt) for prompt in prompts])[:, None]
    learned = (position >= starts) & (batch["attention_mask"] == 1)
    batch["labels"] = mx.where(learned, batch["input_ids"], -100)
    batch["pixel_values"] = processor.preprocess([scenes.draw(scenes.make_scene(seed)) for seed in SEEDS])
    return batch


def train(model: mlx_fastvlm.FastVlmForConditionalGeneration, batch: dict[str, mx.array], steps: int, rate: float):
    """Fit projector and decoder to the batch; yields the loss of every step."""
    model.train()
    model.vision_tower.freeze()
    text = dict(batch)
    features = model.vision_tower(text.pop("pixel_values")).last_hidden_state.flatten(1, 2)
    mx.eval(features)

    def loss_of(model):
        return model(**text, mm_encoder_outputs={"image": model.multi_modal_projector(features)}).loss

    optimizer = optim.Adam(optim.cosine_decay(rate, steps))
    loss_and_gradients = nn.value_and_grad(model, loss_of)
    for _ in range(steps):
        loss, gradients = loss_and_gradients(model)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        mx.eval(loss, model.parameters(), optimizer.state)
        yield loss.item()
    model.eval()


def ask(model, processor) -> list[str]:
    """What the model answers, image by image."""
    images = [scenes.draw(scenes.make_scene(seed)) for seed in SEEDS]
    return [mlx_fastvlm.generate(model, processor, QUESTION, image, max_tokens=16) for image in images]


def plot(losses: list[float], path: Path):
    """The losses on a logarithmic scale, as an image file."""
    from matplotlib.figure import Figure  # noqa: PLC0415  optional

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogy(range(1, len(losses) + 1), losses, linewidth=2)
    axes.set(xlabel="step", ylabel="cross entropy (nats a token)", title="Eight image-question pairs, demo checkpoint")
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="checkpoint to start from (demo)")
    parser.add_argument("--steps", type=int, default=100, help="training steps (100)")
    parser.add_argument("--rate", type=float, default=1e-3, help="Adam's initial learning rate (0.001)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="save the losses as an image; needs matplotlib")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="save the trained model")
    arguments = parser.parse_args()
    if arguments.plot and not importlib.util.find_spec("matplotlib"):
        parser.error("--plot needs matplotlib; install it with pip install matplotlib")

    model, processor = mlx_fastvlm.load(arguments.model, dtype="float32")
    batch = make_batch(processor)
    before = ask(model, processor)
    start, losses = time.perf_counter(), []
    for loss in train(model, batch, arguments.steps, arguments.rate):
        losses.append(loss)
        if len(losses) % 10 == 0 or len(losses) == 1:
            print(f"step {len(losses):3}  loss {loss:8.5f}  {time.perf_counter() - start:5.1f} s", flush=True)
    after = ask(model, processor)
    for seed, old, new, right in zip(SEEDS, before, after, ANSWERS):
        print(f"image {seed}: {old!r} -> {new!r}{'' if new == right else f', but should be {right!r}'}")
    print(f"{sum(new == right for new, right in zip(after, ANSWERS))} of {len(ANSWERS)} right")
    if arguments.plot:
        plot(losses, arguments.plot)
    if arguments.save:
        model.save_pretrained(arguments.save, processor=processor)


if __name__ == "__main__":
    main()
