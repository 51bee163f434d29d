"""This package beside mlx-vlm and transformers: the same random FastVLM-0.5B weights, image and prompt, turn by turn.

    python benchmarks/compare.py CHECKPOINT --mlx-vlm PYTHON --transformers PYTHON

CHECKPOINT is a folder in transformers' layout, for example what `tests/support/reference/full_size.py` records; each
PYTHON is the interpreter of an environment with that package. Each package runs in a process of its own that stays
alive; one warms up and measures while the others wait, in turns, so that what else the machine does falls on all alike.
The table gives medians, and the median of each turn's ratio to this package. `--blas LIBRARY` is preloaded for both MLX
packages; `--defaults` takes each package's own number type; `--earlier CHECKOUT` is an earlier state of this package.
"""

# ruff: noqa: PLC0415  each package is imported in a process of its own

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TEXT_TOKENS = 20
STEPS = ("vision", "prefill", "first token", "decode")


# In the processes: a function that measures once, for each package


def ours(folder, dtype):
    import mlx_fastvlm  # noqa: F401, isort: skip  (before mlx, so that OpenBLAS is found without --blas too)
    import mlx.core as mx

    from mlx_fastvlm.cache.policy import make_cache
    from mlx_fastvlm.generation.decoding import prefill, step

    model = load_without_tokenizer(folder, dtype)
    pixels, text = inputs(folder)
    pixels, text = mx.array(pixels), mx.array(text)[None]

    def measure(tokens):
        start = time.perf_counter()
        features = model.get_image_features(pixels)
        mx.eval(features)
        seen = time.perf_counter()
        caches = make_cache(model)
        embeddings = mx.concatenate([features, model.get_input_embeddings()(text).astype(features.dtype)], axis=1)
        token = mx.argmax(prefill(model, embeddings, caches, 2048), axis=-1)
        mx.eval(token)
        read = time.perf_counter()
        ids = [token.item()]
        for _ in range(tokens):
            token = mx.argmax(step(model, token, caches), axis=-1)
            ids.append(token.item())
        return start, seen, read, time.perf_counter(), ids

    return measure


def load_without_tokenizer(folder, dtype):
    """The reference's checkpoints have random weights and no tokenizer."""
    from mlx_fastvlm import FastVlmForConditionalGeneration

    return FastVlmForConditionalGeneration.from_pretrained(folder, dtype=dtype)


def mlx_vlm(folder, dtype):
    import mlx.core as mx
    from mlx_vlm.models.cache import make_prompt_cache
    from mlx_vlm.utils import load_model

    model = load_model(Path(folder))
    if dtype:
        model.set_dtype(getattr(mx, dtype))
    mx.eval(model.parameters())
    pixels, text = inputs(folder)
    pixels = mx.array(pixels).transpose(0, 3, 1, 2)
    # Its own way: the image token stands once, and is replaced by all features.
    ids_in = mx.array([[model.config.image_token_index, *text]])

    def measure(tokens):
        start = time.perf_counter()
        embeddings = model.get_input_embeddings(ids_in, pixels).inputs_embeds
        mx.eval(embeddings)
        seen = time.perf_counter()
        cache = make_prompt_cache(model.language_model)
        logits = model.language_model(None, inputs_embeds=embeddings, cache=cache).logits[:, -1]
        token = mx.argmax(logits, axis=-1)
        mx.eval(token)
        read = time.perf_counter()
        ids = [token.item()]
        for _ in range(tokens):
            token = mx.argmax(model.language_model(token[:, None], cache=cache).logits[:, -1], axis=-1)
            ids.append(token.item())
        return start, seen, read, time.perf_counter(), ids

    return measure


def transformers(folder, dtype):
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import torch
    from transformers import FastVlmForConditionalGeneration

    from tests.support.reference import record  # noqa: F401  makes timm importable without torchvision's operators

    model = FastVlmForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype or "bfloat16")).eval()
    pixels, text = inputs(folder)
    pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(model.dtype)
    text = torch.tensor(text)[None]

    @torch.no_grad()
    def measure(tokens):
        start = time.perf_counter()
        features = model.model.get_image_features(pixels)
        features = getattr(features, "pooler_output", features)
        features = torch.stack(list(features)) if not torch.is_tensor(features) else features
        seen = time.perf_counter()
        embeddings = torch.cat([features.reshape(1, -1, features.shape[-1]), model.get_input_embeddings()(text)], dim=1)
        out = model(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1].argmax(-1)
        read = time.perf_counter()
        ids = [token.item()]
        for _ in range(tokens):
            out = model(input_ids=token[:, None], past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1].argmax(-1)
            ids.append(token.item())
        return start, seen, read, time.perf_counter(), ids

    return measure


PACKAGES = {"mlx_fastvlm": ours, "mlx-vlm": mlx_vlm, "transformers": transformers}


def inputs(folder):
    """An image, (1, 1024, 1024, 3) in [0, 1], and the ids of the text behind it."""
    told = json.loads((Path(folder) / "config.json").read_text())
    words = min(150000, told.get("text_config", told)["vocab_size"] - 1)
    random = np.random.default_rng(0)
    return random.random((1, 1024, 1024, 3), np.float32), random.integers(0, words, TEXT_TOKENS).tolist()


def work(package, folder, dtype):
    """Measure whenever a line arrives on standard input; answer with a JSON line."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what packages print is not an answer
    measure = PACKAGES[package](folder, dtype)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        measure(1)  # its memory may have been put away while the others measured
        start, seen, read, end, ids = measure(int(line))
        figures = {
            "vision": seen - start,
            "prefill": read - seen,
            "first token": read - start,
            "decode": int(line) / (end - read),
            "ids": ids,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        }
        print(json.dumps(figures), file=answers, flush=True)


# The parent


def for_mlx_vlm(source: Path, target: Path, python: str):
    """The checkpoint with mlx-vlm's names, which it tells us itself, in its own order of axes."""
    from mlx_fastvlm import FastVlmConfig  # isort: skip  (before mlx, so that OpenBLAS is found)
    import mlx.core as mx

    from mlx_fastvlm.checkpoints.layouts import LAYOUTS, canonical_names

    told = json.loads((source / "config.json").read_text())
    config = {**told["text_config"], "model_type": "llava_qwen2", "tie_word_embeddings": told["tie_word_embeddings"]}
    (target / "config.json").write_text(json.dumps(config))
    code = """if True:
        import json, sys
        from mlx.utils import tree_flatten
        from mlx_vlm.models import fastvlm
        config = fastvlm.ModelConfig.from_dict(json.load(open(sys.argv[1])))
        config.text_config = fastvlm.TextConfig.from_dict(config.text_config)
        config.vision_config = fastvlm.VisionConfig.from_dict(config.vision_config)
        print(json.dumps({name: x.shape for name, x in tree_flatten(fastvlm.Model(config).parameters())}))
    """
    run = subprocess.run([python, "-c", code, target / "config.json"], capture_output=True, text=True, check=True)
    wanted = json.loads(run.stdout.splitlines()[-1])
    theirs, reference = (
        next(layout for layout in LAYOUTS if layout.name == name) for name in ("mlx-vlm", "transformers")
    )
    vision = FastVlmConfig.from_file(source / "config.json").vision_config
    tensors = mx.load(str(source / "model.safetensors"))
    by_canonical = {new: tensors[old] for old, new in canonical_names(reference, tensors, vision).items()}
    named = canonical_names(theirs, wanted, vision)
    made = {}
    for name, shape in wanted.items():
        if ".head." in name:  # a classifier's, which nothing runs
            made[name] = mx.zeros(shape)
            continue
        x = by_canonical[named[name]]
        if x.ndim == 4:
            x = x.transpose(0, 2, 3, 1)
        made[name] = x.reshape(shape)
    mx.save_safetensors(str(target / "model.safetensors"), made, {"format": "mlx"})


def start(
    package: str, python: str, folder: Path, dtype: str | None, blas: str | None, checkout: Path | None = None
) -> subprocess.Popen:
    """A process that measures a package; another checkout measures itself, with its own state of this file."""
    environment = dict(os.environ)
    if blas and package != "transformers":
        environment["LD_PRELOAD"] = blas
    script = __file__
    if checkout:
        environment["PYTHONPATH"], script = str(checkout), str(checkout / "benchmarks/compare.py")
    command = [python, script, str(folder), "--work", package, *(["--dtype", dtype] if dtype else [])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert json.loads(process.stdout.readline()) == "ready"
    return process


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--mlx-vlm", metavar="PYTHON")
    parser.add_argument("--transformers", metavar="PYTHON")
    parser.add_argument("--earlier", metavar="CHECKOUT", type=Path, help="another checkout of this package")
    parser.add_argument("--blas", metavar="LIBRARY", help="library to preload for the MLX packages")
    parser.add_argument("--defaults", action="store_true", help="use each package's own number type")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--work", choices=PACKAGES, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        return work(arguments.work, arguments.checkpoint, arguments.dtype)
    from mlx_fastvlm.evaluation.speed import machine

    dtype = None if arguments.defaults else "float32"
    with tempfile.TemporaryDirectory() as renamed:
        own = "mlx_fastvlm", sys.executable, arguments.checkpoint, dtype, arguments.blas
        workers = {"mlx_fastvlm": start(*own)}
        if arguments.earlier:
            workers["earlier"] = start(*own, arguments.earlier.resolve())
        if arguments.mlx_vlm:
            for_mlx_vlm(arguments.checkpoint, Path(renamed), arguments.mlx_vlm)
            workers["mlx-vlm"] = start("mlx-vlm", arguments.mlx_vlm, Path(renamed), dtype or "bfloat16", arguments.blas)
        if arguments.transformers:
            python = arguments.transformers
            workers["transformers"] = start("transformers", python, arguments.checkpoint, dtype or "bfloat16", None)
        turns = []
        for turn in range(1, arguments.turns + 1):
            figures = {}
            for package, worker in workers.items():
                worker.stdin.write(f"{arguments.tokens}\n")
                worker.stdin.flush()
                figures[package] = json.loads(worker.stdout.readline())
                told = {name: round(value, 2) for name, value in figures[package].items() if name != "ids"}
                print(f"turn {turn}", package, told, file=sys.stderr)
            turns.append(figures)
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()
    same = {package: figures["ids"] == turns[0]["mlx_fastvlm"]["ids"] for package, figures in turns[0].items()}
    print(f"greedy tokens equal to mlx_fastvlm's: {same}", file=sys.stderr)
    print(f"this machine: {machine()}", file=sys.stderr)
    report(turns)


def report(turns):
    print("| package | vision (s) | prefill (s) | first token (s) | decode (tokens/s) | peak memory (GB) |")
    print("|---|---|---|---|---|---|")
    for package in turns[0]:
        cells = []
        for step in STEPS:
            median = statistics.median(turn[package][step] for turn in turns)
            ratios = [turn[package][step] / turn["mlx_fastvlm"][step] for turn in turns]
            ratios = [1 / ratio for ratio in ratios] if step == "decode" else ratios
            ratio = f" ({statistics.median(ratios):.2f}x)" if package != "mlx_fastvlm" else ""
            cells.append(f"{median:.2f}{ratio}")
        print(f"| {package} | {' | '.join(cells)} | {turns[-1][package]['peak']:.2f} |")


if __name__ == "__main__":
    main()
