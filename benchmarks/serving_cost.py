"""What HTTP costs: the same questions asked of the library and of a server, turn by turn.

    python benchmarks/serving_cost.py [--model demo] [--requests 64] [--rows 16] [--turns 5] [--tokens 40]

Throughput: each turn draws new images, so that no cache knows them, and asks one question about each, first by
`batch_generate`, then over HTTP: all at once, as the library gets them, with as many rows. First token: one question
about one new image, of `stream_generate` and of an idle server. Both have the same number of BLAS threads: whatever
OPENBLAS_NUM_THREADS says, 1 unless it says something. Needs `pip install "mlx-fastvlm[server]" httpx`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before anything reads it
sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "demo"))

import httpx

import mlx_fastvlm
import scenes

from serving import Job, Seen, ask, serving  # isort: skip  (it lies beside this file)

QUESTION = "Describe the image."
HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n"
)


class Questions:
    """One question about images that nobody has seen."""

    def __init__(self, folder: Path, arguments: argparse.Namespace):
        self._folder, self._drawn, self._arguments = folder, 0, arguments
        self.options = {"max_tokens": arguments.tokens, "image_size": arguments.image_size}
        if arguments.image_size is None:
            del self.options["image_size"]

    def new(self, count: int, stream: bool = True) -> list[Job]:
        """So many questions, each about an image of its own."""
        jobs = []
        for _ in range(count):
            self._drawn += 1
            file = self._folder / f"{self._drawn}.png"
            scenes.draw(scenes.make_scene(self._drawn), self._arguments.pixels).save(file)
            jobs.append(Job(QUESTION, file, self.options, stream=stream))
            assert jobs[-1].body  # which is made once, before any clock runs
        return jobs


def throughput(model, processor, questions: Questions, address: str, arguments: argparse.Namespace, stream: bool):
    """Seconds for all requests: of the library, and over HTTP."""
    library, served = [], []
    for turn in range(arguments.turns + 1):
        jobs = questions.new(arguments.requests, stream)
        prompts, images = [job.question for job in jobs], [str(job.image) for job in jobs]
        start = time.perf_counter()
        texts = mlx_fastvlm.batch_generate(
            model, processor, prompts, images, batch_size=arguments.rows, **questions.options
        )
        between = time.perf_counter()
        for job, text in zip(jobs, texts):
            job.expected = text
        answered = asyncio.run(all_at_once(address, jobs))
        if turn:  # the first one warms up
            library.append(between - start)
            served.append(answered)
    return library, served


async def all_at_once(address: str, jobs: list[Job]) -> float:
    """Seconds until all are answered, over connections that are there already; what came is looked at afterwards."""
    host, port = address.removeprefix("http://").split(":")
    connections = [await asyncio.open_connection(host, int(port), limit=2**20) for _ in jobs]
    start = time.perf_counter()
    bodies = await asyncio.gather(*(exchange(*one, job.body) for one, job in zip(connections, jobs)))
    seconds = time.perf_counter() - start
    for job, body in zip(jobs, bodies):
        text = streamed(body) if job.stream else json.loads(body)["choices"][0]["message"]["content"]
        if text != job.expected:
            raise SystemExit(f"{text!r} is not the library's {job.expected!r}")
    return seconds


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> bytes:
    """The body of the answer to a request. Nothing is parsed meanwhile: the client has the server's cores."""
    writer.write(HEAD.format(len(body)).encode() + body)
    head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"refused: {head!r} {answer!r}")
    return answer


def streamed(body: bytes) -> str:
    """The text of a stream's events, whose pieces (of HTTP) each hold whole lines."""
    events = [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: {")]
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events)


def first_tokens(model, processor, questions: Questions, address: str, arguments: argparse.Namespace):
    """Seconds to the first text about a new image: of the library, and of an idle server."""
    library, served = [], []
    for turn in range(arguments.turns * 4 + 1):
        (job,) = questions.new(1)
        start = time.perf_counter()
        stream = mlx_fastvlm.stream_generate(model, processor, job.question, str(job.image), **questions.options)
        text = next(response.text for response in stream if response.text)
        seconds = time.perf_counter() - start
        job.expected = text + "".join(response.text for response in stream)
        time.sleep(0.05)
        first = asyncio.run(first_of(address, job))
        if turn:
            library.append(seconds)
            served.append(first)
    return library, served


async def first_of(address: str, job: Job) -> float:
    seen = Seen()
    async with httpx.AsyncClient(base_url=address, timeout=600, trust_env=False) as client:
        await client.get("/health")  # the connection is there before the clock starts
        await ask(client, job, seen)
    if not seen.right:
        raise SystemExit(f"the text is not the library's: {seen.wrong}")
    return seen.first[0]


def row(name: str, unit: float, library: list[float], served: list[float]) -> str:
    a, b = statistics.median(library) * unit, statistics.median(served) * unit
    ratios = [other / one for one, other in zip(library, served)]
    more = [(other - one) * 1e3 for one, other in zip(library, served)]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return f"| {name} | {a:.2f} | {b:.2f} | {spread} | {statistics.median(more):.1f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--requests", type=int, default=64, help="requests per turn (%(default)s)")
    parser.add_argument("--rows", type=int, default=16, help="answers to generate at once (%(default)s)")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--pixels", type=int, default=256, help="longer side of the images (%(default)s)")
    parser.add_argument("--image-size", type=int, help="side to scale images to (the checkpoint's)")
    parser.add_argument("--tokens", type=int, default=40, help="stop after this many tokens (%(default)s)")
    parser.add_argument(
        "--skip-first", action="store_true", help="don't time first tokens: random weights generate hardly any text"
    )
    arguments = parser.parse_args()
    model, processor = mlx_fastvlm.load(arguments.model)
    flags = ("--max-rows", arguments.rows, "--max-queue", arguments.requests)
    with tempfile.TemporaryDirectory() as folder, serving(arguments.model, *flags) as (_, address):
        questions = Questions(Path(folder), arguments)
        print("| | library | over HTTP | ratio (median, range) | more, ms |\n|---|---|---|---|---|")
        if not arguments.skip_first:
            measured = first_tokens(model, processor, questions, address, arguments)
            print(row("first token, ms", 1e3, *measured), flush=True)
        for stream in (True, False):
            measured = throughput(model, processor, questions, address, arguments, stream)
            name = f"{arguments.requests} requests, {'streamed' if stream else 'whole'}, s"
            print(row(name, 1, *measured), flush=True)


if __name__ == "__main__":
    main()
