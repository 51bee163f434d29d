"""This server beside mlx-vlm's: the same random FastVLM-0.5B, as many requests with images at once, turn by turn.

    python benchmarks/servers.py --mlx-vlm PYTHON [--requests 16] [--image-size 256] [--tokens 16] [--turns 3]

PYTHON is the interpreter of an environment with mlx-vlm. The weights are drawn once, and written in mlx-vlm's layout,
which both read. Both servers stay alive; each turn draws new images, so that no cache knows them, and asks one server
and then the other, which take turns in coming first. `--blas LIBRARY` is preloaded for mlx-vlm's server, since this
package finds OpenBLAS by itself. Needs `pip install "mlx-fastvlm[server]" httpx`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "demo"))

import httpx

import mlx_fastvlm  # before mlx, so that OpenBLAS is found

import scenes  # isort: skip
from mlx.utils import tree_flatten  # isort: skip

from mlx_fastvlm.checkpoints.export import to_transformers
from mlx_fastvlm.checkpoints.weights import Weights
from mlx_fastvlm.files import atomic_folder, write_json, write_tensors
from mlx_fastvlm.models.released import random_config, random_processor

from serving import JSON, Job, serving, wait_until_ready  # isort: skip  (it lies beside this file)

QUESTION = "Describe the image."


def make(folder: Path, image_size: int) -> Path:
    """Random weights of FastVLM-0.5B's shapes, float32, in mlx-vlm's layout."""
    config, processor = random_config("0.5b"), random_processor()
    config.dtype, processor.image_settings.size = "float32", image_size
    tensors = dict(tree_flatten(mlx_fastvlm.FastVlmForConditionalGeneration(config).parameters()))
    source, made = folder / "transformers", folder / "mlx-vlm"
    with atomic_folder(source) as unfinished:
        weights = Weights(tensors, {}, config.tie_word_embeddings, "random")
        weights, described = to_transformers(weights, config, processor, unfinished)
        write_tensors(unfinished, weights.tensors, made_for="pt")
        write_json(unfinished / "config.json", described)
    mlx_fastvlm.convert(source, made, layout="mlx-vlm", verify=False)
    return made


@contextmanager
def their_server(python: str, model: Path, blas: str | None):
    """mlx-vlm's server in a process of its own -> its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "mlx_vlm.server", "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, **({"LD_PRELOAD": blas} if blas else {})}
    process = subprocess.Popen([*command, "--log-level", "ERROR"], env=environment)
    try:
        wait_until_ready(process, f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


async def all_at_once(address: str, jobs: list[Job]) -> tuple[float, list[str], int]:
    """Seconds until all are answered, the texts, and the tokens in them."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits, trust_env=False) as client:
        await asyncio.gather(*(client.get("/health") for _ in jobs))
        start = time.perf_counter()
        posts = (client.post("/v1/chat/completions", content=job.body, headers=JSON) for job in jobs)
        answers = [response.raise_for_status().json() for response in await asyncio.gather(*posts)]
        seconds = time.perf_counter() - start
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    usage = [answer["usage"] for answer in answers]
    return seconds, texts, sum(used.get("completion_tokens", used.get("output_tokens", 0)) for used in usage)


def measure(addresses: dict[str, str], model: Path, folder: Path, arguments: argparse.Namespace):
    """Seconds of each turn by server, and how many of the texts were the same."""
    seconds: dict[str, list[float]] = {name: [] for name in addresses}
    drawn = same = 0
    options = {"model": str(model), "max_tokens": arguments.tokens, "temperature": 0}
    for turn in range(arguments.turns + 1):
        jobs = []
        for _ in range(arguments.requests):
            drawn += 1
            file = folder / f"{drawn}.png"
            scenes.draw(scenes.make_scene(drawn), 256).save(file)
            jobs.append(Job(QUESTION, file, options, stream=False))
            assert jobs[-1].body  # which is made once, before any clock runs
        texts = {}
        for name in sorted(addresses, reverse=turn % 2 == 1):
            took, texts[name], tokens = asyncio.run(all_at_once(addresses[name], jobs))
            if tokens != arguments.requests * arguments.tokens:
                print(f"{name}: {tokens} tokens instead of {arguments.requests * arguments.tokens}")
            print(f"turn {turn}: {name} {took:.2f} s" + ("" if turn else ", not counted"), flush=True)
            if turn:  # the first one warms up
                seconds[name].append(took)
        same += sum(one == other for one, other in zip(*texts.values())) if turn else 0
    return seconds, same


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mlx-vlm", required=True, metavar="PYTHON")
    parser.add_argument("--requests", type=int, default=16, help="requests at once (%(default)s)")
    parser.add_argument(
        "--image-size", type=int, default=256, help="the checkpoint's image size in pixels (%(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=16, help="tokens per answer (%(default)s)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--blas", metavar="LIBRARY")
    parser.add_argument("--folder", type=Path, help="folder to keep or find the weights in")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        where = arguments.folder or Path(folder)
        model = where / "mlx-vlm" if (where / "mlx-vlm").exists() else make(where, arguments.image_size)
        flags = ("--max-rows", arguments.requests, "--max-queue", arguments.requests)
        with (
            serving(str(model), *flags) as (_, ours),
            their_server(arguments.mlx_vlm, model, arguments.blas) as theirs,
        ):
            addresses = {"mlx_fastvlm.server": ours, "mlx_vlm.server": theirs}
            seconds, same = measure(addresses, model, Path(folder), arguments)
    for name, took in seconds.items():
        print(f"{name}: median {statistics.median(took):.2f} s")
    ratios = [theirs / ours for ours, theirs in zip(*seconds.values())]
    print(
        f"mlx_vlm.server takes {statistics.median(ratios):.2f} times as long ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    print(f"{same} of {arguments.requests * arguments.turns} texts are the same")


if __name__ == "__main__":
    main()
