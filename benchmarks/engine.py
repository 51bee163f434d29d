"""What the engine costs one answer, and what it gains for many; prints Markdown tables.

    python benchmarks/engine.py [one] [stream] [gaps] [long] [--before DIR] [--mlx-vlm PYTHON] [--figure FILE]

``one`` compares a single answer with another checkout of this package (``--before``), turn by turn. ``stream`` lets
prompts with images arrive at random times (``--mlx-vlm``: also at mlx-vlm's batch generator, with the same decoder
weights, prompts, embedded images and times), and ``gaps`` long prompts beside a running answer. These run
FastVLM-0.5B's shapes with random weights, float32 (2.6 GB). ``long`` runs 5,000 answers of the demo checkpoint through
one engine.
Let nothing else run beside it.
"""

import argparse
import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlx_fastvlm  # before mlx, so that OpenBLAS is found

import mlx.core as mx  # isort: skip
import numpy as np  # isort: skip
from mlx.utils import tree_flatten  # isort: skip
from PIL import Image  # isort: skip

from mlx_fastvlm import Engine, GenerationOptions, VisionCache, stream_generate
from mlx_fastvlm.generation.request import make_request
from mlx_fastvlm.models.released import random_model

SIDE = 256  # pixels of an image: 16 tokens, since the tower is not the point
LONG = 1000  # tokens of a prompt that joins
ROWS = 32  # at a time, for `stream`: as many as mlx-vlm's batch generator takes


def model():
    """FastVLM-0.5B with random weights, and answers that go on to max_tokens."""
    model, processor = random_model("0.5b", mx.float32)
    mx.eval(model.parameters())
    return model, dataclasses.replace(processor, eos_token_ids=frozenset())


def image(number):
    return Image.fromarray(np.random.RandomState(number).randint(0, 256, (SIDE, SIDE, 3), np.uint8))


ONE = """
import dataclasses, json, sys
import mlx_fastvlm
import mlx.core as mx
from PIL import Image
from mlx_fastvlm import stream_generate
try:
    from mlx_fastvlm.models.released import random_model
except ImportError:  # the first version
    from mlx_fastvlm.benchmark import random_model
model, processor = random_model("0.5b", mx.float32)
mx.eval(model.parameters())
processor = dataclasses.replace(processor, eos_token_ids=frozenset())
print("ready", flush=True)
for line in sys.stdin:
    mx.reset_peak_memory()
    *_, last = stream_generate(model, processor, "What is this?", Image.new("RGB", (256, 256)), image_size=256,
                               max_tokens=32)
    print(json.dumps([last.time_to_first_token, last.generation_tps, last.peak_memory]), flush=True)
"""


def one(arguments):
    """One answer, now and before, turn by turn in two processes."""
    processes = []
    for folder in (arguments.before, str(Path(__file__).resolve().parents[1])):
        environment = {**os.environ, "PYTHONPATH": folder}
        command = [sys.executable, "-c", ONE]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        processes.append(subprocess.Popen(command, env=environment, cwd=folder, text=True, **pipes))
        assert processes[-1].stdout.readline() == "ready\n"
    runs = [[], []]
    for turn in range(arguments.repeats + 1):
        for found, process in zip(runs, processes):
            process.stdin.write("go\n")
            process.stdin.flush()
            measured = json.loads(process.stdout.readline())
            if turn:  # the first warms up
                found.append(measured)
    for process in processes:
        process.stdin.close()
        process.wait()
    print(f"| median of {arguments.repeats} | before | now | ratio, above 1 is better now |\n|---|---|---|---|")
    for i, name in enumerate(("first token (s)", "tokens/s", "peak memory (GB)")):
        before, now = (statistics.median(row[i] for row in found) for found in runs)
        print(f"| {name} | {before:.3f} | {now:.3f} | {now / before if i == 1 else before / now:.3f} |")


def watch_decoder(model):
    """Counts the rows of each of the decoder's one-token calls."""
    rows, decoder = [], type(model.language_model)
    run = decoder.__call__

    def watching(self, embeddings, *args, **kwargs):
        if embeddings.shape[1] == 1:
            rows.append(embeddings.shape[0])
        return run(self, embeddings, *args, **kwargs)

    decoder.__call__ = watching
    return rows


# mlx-vlm's decoder and batch generator, its settings as they come. The clock starts when everything is loaded.
MLX_VLM = """
import json, sys, time, types
import mlx.core as mx
from mlx_vlm.generate.ar import BatchGenerator
from mlx_vlm.models import fastvlm
folder = sys.argv[1]
job = json.load(open(f"{folder}/job.json"))
decoder = fastvlm.LanguageModel(fastvlm.TextConfig.from_dict(job["config"]))
decoder.load_weights(f"{folder}/decoder.safetensors")
mx.eval(decoder.parameters())
prompts = mx.load(f"{folder}/prompts.safetensors")
mx.eval(prompts)

class Never:
    def add_eos_token_ids(self, ids): pass
    def __call__(self, token): return False

def run(due):
    generator = BatchGenerator(decoder, types.SimpleNamespace(stopping_criteria=Never()), compute_logprobs=False)
    tokens, start, due = {}, time.perf_counter(), list(due)
    while due or generator.has_work:
        while due and due[0][0] <= time.perf_counter() - start:
            _, number, most = due.pop(0)
            embeddings = prompts[str(number)]
            generator.insert([[0] * embeddings.shape[1]], [most], [{"inputs_embeds": embeddings}])
        if generator.has_work:
            for response in generator.next()[1]:
                tokens.setdefault(response.uid, []).append(response.token)
    return time.perf_counter() - start, tokens

run([[0, number, 2] for _, number, _ in job["due"][:2]])  # warm
seconds, tokens = run(job["due"])
print(json.dumps([seconds, tokens]))
"""


def at_mlx_vlm(python, own, processor, due):
    """Seconds that mlx-vlm takes for the same prompts at the same times, and each answer's tokens."""
    text = dataclasses.asdict(own.config.text_config)
    config = {**text, "model_type": "qwen2", "tie_word_embeddings": own.config.tie_word_embeddings}
    job = {"config": config, "due": [(moment, number, asked["max_tokens"]) for number, (moment, asked) in due]}
    prompts = {}
    for number, (_, asked) in due:
        request = make_request(processor, asked["prompt"], asked["image"], GenerationOptions(image_size=SIDE))
        pixels = processor.to_pixel_values(request.images[0].pixels[None])
        prompts[str(number)] = own.embed(mx.array([request.ids]), own.get_image_features(pixels))
        mx.eval(prompts)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "job.json").write_text(json.dumps(job))
        mx.save_safetensors(f"{folder}/prompts.safetensors", prompts)
        decoder = {f"model.{name}": x for name, x in tree_flatten(own.language_model.parameters())}
        mx.save_safetensors(f"{folder}/decoder.safetensors", decoder)
        environment = {**os.environ, "LD_PRELOAD": "libopenblas.so.0"} if sys.platform == "linux" else None
        command = [python, "-c", MLX_VLM, folder]
        run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seconds, tokens = json.loads(run.stdout.splitlines()[-1])
    return seconds, list(tokens.values())


def stream(arguments):
    """Prompts with images that arrive at random, against one at a time."""
    own, processor = model()
    rows, chance, cache = watch_decoder(own), random.Random(0), VisionCache()
    asked = [
        {"prompt": f"What is this, number {i}?", "image": image(i), "max_tokens": chance.randint(8, arguments.longest)}
        for i in range(arguments.prompts)
    ]
    fixed = {"image_size": SIDE, "vision_cache": cache}
    for job in asked:  # features into the cache
        list(stream_generate(own, processor, **{**job, "max_tokens": 1}, **fixed))
    tokens = sum(job["max_tokens"] for job in asked)

    start = time.perf_counter()
    singles = [[r.token for r in stream_generate(own, processor, **job, **fixed)] for job in asked]
    alone = time.perf_counter() - start

    mean_gap = alone / len(asked) / 8  # eight times as many as one at a time could answer
    due, moment = [], 0.0
    for job in asked:
        due.append((moment, job))
        moment += chance.expovariate(1 / mean_gap)
    arrivals = list(enumerate(due))
    engine, answers = Engine(own, processor, max_rows=ROWS), []
    rows.clear()
    start = time.perf_counter()
    while due or not all(answer.ended for answer in answers):
        while due and due[0][0] <= time.perf_counter() - start:
            answers.append(engine.submit(**due.pop(0)[1], **fixed))
        engine.step()
    together = time.perf_counter() - start
    same = sum([r.token for r in answer] == single for answer, single in zip(answers, singles))
    print(
        f"{len(asked)} prompts, {tokens} tokens of answer, arriving over {moment:.0f} s; the same tokens {same} times\n"
    )
    print("| | seconds | tokens/s |\n|---|---|---|")
    print(f"| one at a time | {alone:.1f} | {tokens / alone:.1f} |")
    print(f"| the engine | {together:.1f} | {tokens / together:.1f} |")
    if arguments.mlx_vlm:
        theirs, told = at_mlx_vlm(arguments.mlx_vlm, own, processor, arrivals)
        print(f"| mlx-vlm's batch generator | {theirs:.1f} | {tokens / theirs:.1f} |")
        same = sum(answer in told for answer in singles)
        print(f"\nagainst mlx-vlm {theirs / together:.2f}; it answers {same} with the same tokens", end="")
    print(f"\nratio {alone / together:.2f}; rows per decoder call: mean {np.mean(rows):.1f}, most {max(rows)}")


def gaps(arguments):
    """A running answer while long prompts join: how long it waits for its next token, in steps of its own."""
    own, processor = model()
    engine = Engine(own, processor, prefill_step_size=256)
    running = engine.submit("a", max_tokens=10**6)
    while running.delivered < 3:
        engine.step()

    def times(count):
        for _ in range(count):
            start = time.perf_counter()
            engine.step()
            assert running.ready()
            yield time.perf_counter() - start

    step = statistics.median(times(12))
    joining = []
    for _ in range(4):
        engine.submit("x" * LONG, max_tokens=2)
        joining += times(8)
    median, late = np.percentile(joining, [50, 99]) / step
    print("| | in steps of one row alone |\n|---|---|")
    print(f"| median gap | {median:.1f} |\n| 99th percentile | {late:.1f} |")


def long(arguments):
    """Thousands of answers through one engine: memory."""
    own, processor = mlx_fastvlm.load("demo")
    engine, chance, held = Engine(own, processor), random.Random(0), []
    answers, asked = [], 0
    while asked < arguments.answers or answers:
        while engine.room and asked < arguments.answers:
            shown = image(asked % 50) if asked % 2 else None
            options = {"max_tokens": chance.randint(1, 16), "image_size": 128}
            answers.append(engine.submit("What is this?" * chance.randint(1, 4), shown, **options))
            asked += 1
        engine.step()
        answers = [answer for answer in answers if not answer.ended]
        if asked % 100 == 0 and (not held or held[-1][0] != asked):
            pages = int(Path("/proc/self/statm").read_text().split()[1]) if sys.platform == "linux" else 0
            held.append((asked, mx.get_active_memory() / 1e6, pages * 4096 / 1e6))
    print("| answers | MLX's memory (MB) | the process (MB) |\n|---|---|---|")
    for count, active, resident in held[:: max(1, len(held) // 10)]:
        print(f"| {count} | {active:.1f} | {resident:.0f} |")
    if arguments.figure:
        from matplotlib.figure import Figure  # noqa: PLC0415  not everybody has matplotlib

        canvas = Figure(figsize=(7, 3.5), layout="constrained")
        axes = canvas.add_subplot()
        counts, active, resident = zip(*held)
        axes.plot(counts, active, label="MLX's arrays")
        axes.plot(counts, resident, label="the process")
        axes.set(xlabel="answers through one engine", ylabel="MB", ylim=(0, None))
        axes.legend()
        canvas.savefig(arguments.figure, dpi=150)


TABLES = {"one": one, "stream": stream, "gaps": gaps, "long": long}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], default=[])
    parser.add_argument("--before", help="a checkout of this package, for `one`")
    parser.add_argument("--mlx-vlm", metavar="PYTHON", help="interpreter of an environment with mlx-vlm, for `stream`")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--longest", type=int, default=96)
    parser.add_argument("--answers", type=int, default=5000)
    parser.add_argument("--figure", help="file to draw `long` to")
    arguments = parser.parse_args()
    for name in arguments.tables or TABLES:
        TABLES[name](arguments)
        print(flush=True)
