"""LoRA steps of this package beside mlx-vlm's: the same random weights, adapters, rows and batches, in float32.

    python benchmarks/finetuning_peers.py --mlx-vlm PYTHON --random 0.5b --image-size 512 --steps 6

PYTHON is the interpreter of an environment with mlx-vlm. Its own command, `python -m mlx_vlm.train`, is tried first,
and what it says is printed: up to 0.7.10 it takes no FastVLM, since the model's logits have a place for each image
token and its targets one for each image. Its older loop (`mlx_vlm.trainer.train`) cuts the logits at the front instead,
which is right where no row is padded; so all rows are given a length that its padding leaves alone.

Each package runs in a process of its own with the same folder, in mlx-vlm's layout. Here images go through the tower
once, before the first step (the column "features"); there they do at each step. Processor time stands beside the
clock's: what else the machine does falls on it less.
"""

# ruff: noqa: PLC0415  each package is imported in a process of its own

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PADDED_TO = 32  # tokens, by mlx-vlm, an image counted as one
RANK, SCALE = 8, 2.0  # mlx-vlm's defaults: alpha 16
QUESTION = "What is in the image?"

# In a process of mlx-vlm's environment
THEIRS = """
import json, sys, time
import mlx.core as mx, mlx.optimizers as optim
from mlx_vlm import load
from mlx_vlm.trainer import TrainingArgs, VisionDataset, prepare_model_for_training, train
from mlx_vlm.trainer.vlm.sft import trainer as loop
job = json.loads(sys.argv[1])
model, processor = load(job["model"])
rows = [json.loads(line) for line in open(job["data"] + "/train.jsonl")]
for row in rows:
    row["images"] = [job["data"] + "/" + name for name in row["images"]]
model = prepare_model_for_training(model, lora_rank=job["rank"], lora_alpha=job["rank"] * job["scale"],
                                   target_modules=job["targets"])
ours = mx.load(job["adapters"])
model.load_weights([(name.replace("language_model.", "language_model.model.", 1), x) for name, x in ours.items()],
                   strict=False)
class Data(VisionDataset):
    def process(self, row):
        row = super().process(row)
        row["completion_mask"][:, -1] = 0  # the newline behind the end token, which is not learnt here
        return row
data = Data(rows, json.load(open(job["model"] + "/config.json")), processor, train_on_completions=True)
assert len({data[i]["input_ids"].size for i in range(len(rows))}) == 1 and data[0]["input_ids"].size % 32 == 0
mx.eval(model.parameters())
def now():
    return time.perf_counter(), time.process_time()
told, moments = [], []
loop.format_metric_report = lambda info, kind: moments.append(now()) or told.append(info) or ""
optimizer = optim.AdamW(job["rate"], weight_decay=0.0, bias_correction=True)
args = TrainingArgs(batch_size=job["batch"], iters=job["steps"], steps_per_report=1, steps_per_save=10**9,
                    grad_clip=None, adapter_file=job["out"], grad_checkpoint=job["checkpoint"])
# the same rows in each step
loop.np.random.permutation = lambda n: range(n)
mx.clear_cache()
mx.reset_peak_memory()
moments.append(now())
train(model, optimizer, data, args=args, train_on_completions=True)
print(json.dumps({"losses": [info["train_loss"] for info in told], "peak": mx.get_peak_memory() / 1e9,
                  "moments": moments}))
"""


def now() -> tuple[float, float]:
    """By the clock, and of the processor."""
    return time.perf_counter(), time.process_time()


def ours(job: dict) -> dict:
    """This package's steps, in this process."""
    import mlx_fastvlm  # isort: skip  (before mlx, so that OpenBLAS is found)
    import mlx.core as mx

    from mlx_fastvlm.tuner import AdapterConfig, TrainingOptions, encode_all, read_conversations, train

    model, processor = mlx_fastvlm.load(job["model"], dtype="float32")
    mx.eval(model.parameters())
    samples, _ = encode_all(read_conversations(job["data"], "train"), processor, max_seq_length=2048)
    losses, moments = [], []
    started = now()

    def features_done(step: str, done: int, total: int):
        mx.clear_cache()
        mx.reset_peak_memory()
        moments[:] = [now()]

    def report(told):
        moments.append(now())
        losses.append(told.loss)

    options = TrainingOptions(
        AdapterConfig(num_layers=-1, rank=job["rank"], scale=job["scale"]),
        resume_adapter_file=job["adapters"],
        iters=job["steps"],
        batch_size=job["batch"],
        learning_rate=job["rate"],
        optimizer="adamw",
        weight_decay=0.0,
        steps_per_report=1,
        grad_checkpoint=job["checkpoint"],
    )
    train(model, processor, samples, [], options, report=report, progress=features_done)
    features = [b - a for a, b in zip(started, moments[0])]
    return {"losses": losses, "peak": mx.get_peak_memory() / 1e9, "moments": moments, "features": features}


def write_job(folder: Path, arguments: argparse.Namespace) -> dict:
    """The model, its first adapters, and as many rows as a batch has, all of one length."""
    import mlx_fastvlm  # noqa: F401, isort: skip  (before mlx, so that OpenBLAS is found)
    import mlx.core as mx
    import numpy as np
    from PIL import Image

    from mlx_fastvlm import load
    from mlx_fastvlm.models.lora import AdapterConfig, adapter_tensors, add_adapters
    from mlx_fastvlm.models.released import random_model

    mx.random.seed(0)
    model, processor = random_model(arguments.random, mx.float32)
    processor.image_settings.size = arguments.image_size
    model.save_pretrained(folder / "model", layout="mlx-vlm", processor=processor)
    add_adapters(model, AdapterConfig(num_layers=-1, rank=RANK, scale=SCALE))
    mx.save_safetensors(str(folder / "first.safetensors"), adapter_tensors(model))
    del model
    _, processor = load(folder / "model", lazy=True)
    data, random, rows = folder / "data", np.random.RandomState(0), []
    data.mkdir()
    for number in range(arguments.batch_size):
        pixels = random.randint(0, 255, (arguments.image_size, arguments.image_size, 3), np.uint8)
        Image.fromarray(pixels).save(data / f"{number}.png")
        answer = ["A", *random.choice([" red", " blue", " star", " circle", " big", " small"], arguments.answer)]
        while _tokens(processor, answer, arguments.image_size) % PADDED_TO:
            answer.append(" thing")
        asked = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "".join(answer)}]
        rows.append({"images": [f"{number}.png"], "messages": asked})
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = {name: str(folder / path) for name, path in (("model", "model"), ("data", "data"), ("out", "out/a"))}
    how = {"rank": RANK, "scale": SCALE, "targets": TARGETS, "batch": arguments.batch_size, "steps": arguments.steps}
    how |= {"rate": arguments.learning_rate, "checkpoint": arguments.grad_checkpoint}
    return {**names, **how, "adapters": str(folder / "first.safetensors")}


def _tokens(processor, answer: list[str], image_size: int) -> int:
    """Of a row, its image counted as one."""
    messages = [{"role": "user", "content": f"<image>\n{QUESTION}"}, {"role": "assistant", "content": "".join(answer)}]
    ids = processor.encode_chat(messages, add_generation_prompt=False, image_size=image_size)
    return len(ids) - processor.num_image_tokens(image_size) + 1


def command_of_theirs(python: str, job: dict) -> str:
    """The last line that ``python -m mlx_vlm.train`` prints for two steps."""
    told = [python, "-m", "mlx_vlm.train", "--model", job["model"], "--data", job["data"], "--iters", "2"]
    told += ["--batch-size", str(job["batch"]), "--train-on-completions", "--output-path", job["out"]]
    done = subprocess.run(told, capture_output=True, text=True, env=_environment())
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def _environment() -> dict[str, str]:
    """OpenBLAS for both: this package finds it itself."""
    blas = {"LD_PRELOAD": "libopenblas.so.0"} if sys.platform == "linux" else {}
    return {**os.environ, **blas}


def show(found: dict[str, dict]):
    print("\n| | a step | processor | peak memory | features, once | losses |\n|---|---|---|---|---|---|")
    steps = {name: a_step(told["moments"]) for name, told in found.items()}
    for name, told in found.items():
        (clock, processor), losses = steps[name], " ".join(f"{loss:.4f}" for loss in told["losses"])
        once = f"{told['features'][0]:.1f} s" if "features" in told else "in each step"
        print(f"| {name} | {clock:.2f} s | {processor:.2f} s | {told['peak']:.2f} GB | {once} | {losses} |")
    clock, processor = (theirs / ours for ours, theirs in zip(*steps.values()))
    apart = max(abs(a - b) for a, b in zip(*(told["losses"] for told in found.values())))
    print(f"\nsteps {clock:.2f} times as fast, by processor time {processor:.2f}; losses at most {apart:.1e} apart")


def a_step(moments: list[tuple[float, float]]) -> tuple[float, float]:
    """Seconds by the clock and of the processor: medians of all steps but the first."""
    between = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(moments)][1:]
    return statistics.median(clock for clock, _ in between), statistics.median(used for _, used in between)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mlx-vlm", metavar="PYTHON", help="interpreter of an environment with mlx-vlm")
    parser.add_argument("--random", choices=("0.5b", "1.5b", "7b"), default="0.5b", help="shapes of the model (0.5b)")
    parser.add_argument("--image-size", type=int, default=512, help="side of the images in pixels (512)")
    parser.add_argument("--batch-size", type=int, default=2, help="rows per step, the same in each (2)")
    parser.add_argument("--answer", type=int, default=30, help="words per answer, or a few more (30)")
    parser.add_argument("--steps", type=int, default=6, help="steps; the first does not count (6)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="learning rate (1e-4)")
    parser.add_argument("--grad-checkpoint", action="store_true")
    parser.add_argument("--work", metavar="JOB", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(ours(json.loads(arguments.work))))
        return
    with tempfile.TemporaryDirectory() as folder:
        job = write_job(Path(folder), arguments)
        commands = {"mlx_fastvlm": [sys.executable, __file__, "--work", json.dumps(job)]}
        if arguments.mlx_vlm:
            print("python -m mlx_vlm.train says:", command_of_theirs(arguments.mlx_vlm, job), flush=True)
            commands["mlx-vlm's older loop"] = [arguments.mlx_vlm, "-c", THEIRS, json.dumps(job)]
        found = {}
        for name, command in commands.items():
            done = subprocess.run(command, capture_output=True, text=True, env=_environment())
            if done.returncode:
                sys.exit(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
            found[name] = json.loads(done.stdout.splitlines()[-1])
        if len(found) == 2:
            show(found)
        else:
            print(json.dumps(found))


if __name__ == "__main__":
    main()
