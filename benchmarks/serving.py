"""The server under load: many clients at once, and every text compared with what the library says alone.

    python benchmarks/serving.py --clients 200 --requests 1000 [--rate 20] [--vanish 0.3]
    python benchmarks/serving.py --clients 32 --requests 20000 --short --figure docs/figures/server-soak.png

Starts a server with the demo on a free port of this machine. A closed loop by default: each client asks again as soon
as it is answered; with ``--rate`` an open one, where so many requests a second arrive, whatever became of the others.
``--vanish`` is the share of clients that leave in the middle. ``serving_cost.py`` measures what HTTP costs.
Needs ``pip install "mlx-fastvlm[server]" httpx``, and matplotlib for ``--figure``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import http.client
import json
import multiprocessing
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path

import httpx

import mlx_fastvlm

IMAGES = sorted((Path(__file__).parent.parent / "examples" / "images").glob("*.png"))
QUESTIONS = ["Describe the image.", "What colour is the star?", "How many small shapes are there?", "What is there?"]
SHORT = {"image_size": 64, "max_tokens": 6}
JSON = {"content-type": "application/json"}
OPTIONS = [
    {"max_tokens": 40},
    {"max_tokens": 16, "temperature": 1.2, "seed": 7},
    {"max_tokens": 48, "temperature": 0.8, "top_p": 0.9, "seed": 1},
    {"max_tokens": 32, "stop": [" and"]},
    {"max_tokens": 24, "frequency_penalty": 1.0},
]


@dataclass
class Job:
    """A question with or without an image, and the answer that is right."""

    question: str
    image: Path | None
    options: dict
    expected: str = ""
    stream: bool = True

    @cached_property
    def body(self) -> bytes:
        content: list[dict] = [{"type": "text", "text": self.question}]
        if self.image is not None:
            data = base64.b64encode(self.image.read_bytes()).decode()
            content.insert(0, {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
        messages = [{"role": "user", "content": content}]
        return json.dumps({"messages": messages, "stream": self.stream, **self.options}).encode()


@dataclass
class Seen:
    """What the clients saw."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    vanished: int = 0
    refused: Counter = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)  # seconds to the first text
    between: list[float] = field(default_factory=list)  # seconds between events
    health: list[float] = field(default_factory=list)
    memory: list[tuple[int, float]] = field(default_factory=list)  # after so many requests, resident bytes
    things: list[tuple[int, int, int]] = field(default_factory=list)  # after so many requests, threads and files
    pieces: int = 0

    def check(self, job: Job, text: str):
        if text == job.expected:
            self.right += 1
        else:
            self.wrong.append(f"{job.question} ({job.image}, {job.options}): {text!r} is not {job.expected!r}")


def make_jobs(short: bool) -> list[Job]:
    each = [{**options, **(SHORT if short else {})} for options in OPTIONS]
    jobs = [Job(question, image, options) for question in QUESTIONS for image in [*IMAGES, None] for options in each]
    model, processor = mlx_fastvlm.load("demo")
    for job in jobs:
        image = None if job.image is None else str(job.image)
        job.expected = mlx_fastvlm.generate(model, processor, job.question, image, **job.options)
    return jobs


async def ask(client: httpx.AsyncClient, job: Job, seen: Seen, leave_after: int | None = None):
    """One request; ``leave_after`` so many events, the client goes."""
    start = last = time.perf_counter()
    text = ""
    async with client.stream("POST", "/v1/chat/completions", content=job.body, headers=JSON) as response:
        if response.status_code != 200:
            seen.refused[response.status_code] += 1
            await response.aread()
            return
        events = 0
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                seen.wrong.append(f"{job.question}: {chunk['error']['message']}")
                return
            piece = chunk["choices"][0]["delta"].get("content") or ""
            now = time.perf_counter()
            if piece:
                (seen.between if text else seen.first).append(now - (last if text else start))
                last = now
            text += piece
            events += 1
            seen.pieces += 1
            if leave_after is not None and events > leave_after:
                seen.vanished += 1
                return
    seen.check(job, text)


async def watch(process: subprocess.Popen, seen: Seen, done: list[int]):
    """Note the server's memory, threads and files all the time."""
    while True:
        seen.memory.append((done[0], resident(process)))
        seen.things.append((done[0], *open_things(process)))
        await asyncio.sleep(0.1)


def probe(host: str, port: int, pipe: Connection):
    """Ask for the server's health all the time, and tell how long it took; in a process of its own, which nothing holds
    up but the server."""
    connection = http.client.HTTPConnection(host, port, timeout=60)
    connection.connect()
    seconds: list[float] = []
    pipe.send(seconds)  # now the others may begin
    while not pipe.poll(0.02):
        start = time.perf_counter()
        connection.request("GET", "/health")
        response = connection.getresponse()
        response.read()
        seconds.append(time.perf_counter() - start)
        if response.status != 200:
            raise SystemExit("the server is not healthy")
    pipe.send(seconds)


@contextmanager
def probed(address: str, seen: Seen):
    """While the block runs, somebody asks for the server's health."""
    host, port = address.removeprefix("http://").split(":")
    mine, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=probe, args=(host, int(port), its), daemon=True)
    process.start()
    mine.recv()
    try:
        yield
    finally:
        mine.send(None)
        seen.health += mine.recv()
        process.join(10)


async def load(address: str, jobs: list[Job], arguments: argparse.Namespace, process: subprocess.Popen) -> Seen:
    """Ask all there is to ask."""
    seen, done, rng = Seen(), [0], random.Random(arguments.seed)
    asked = iter(range(arguments.requests))
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=arguments.clients)
    async with (
        httpx.AsyncClient(base_url=address, timeout=600, limits=limits, trust_env=False) as client,
        httpx.AsyncClient(base_url=address, timeout=600, trust_env=False) as other,
    ):

        async def one():
            leave_after = rng.randint(0, 12) if rng.random() < arguments.vanish else None
            await ask(client, rng.choice(jobs), seen, leave_after)
            done[0] += 1

        async def loop():
            for _ in asked:
                await one()

        watching = asyncio.create_task(watch(process, seen, done))
        with probed(address, seen):
            if arguments.rate:
                tasks = []
                for _ in asked:
                    tasks.append(asyncio.create_task(one()))
                    await asyncio.sleep(rng.expovariate(arguments.rate))
                await asyncio.gather(*tasks)
            else:
                await asyncio.gather(*(loop() for _ in range(arguments.clients)))
        watching.cancel()
        await settle(other, seen)
    return seen


async def settle(client: httpx.AsyncClient, seen: Seen):
    """No row may be left once everybody is answered or gone."""
    for _ in range(50):
        rows = await gauge(client, "fastvlm_running_rows")
        if rows == 0:
            return
        await asyncio.sleep(0.1)
    seen.wrong.append(f"{rows:g} rows still run though nobody waits for them")


async def gauge(client: httpx.AsyncClient, name: str) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def resident(process: subprocess.Popen) -> float:
    """Bytes that a process holds in memory; 0 where the system doesn't tell."""
    try:
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def open_things(process: subprocess.Popen) -> tuple[int, int]:
    """Threads and files of a process."""
    folder = Path(f"/proc/{process.pid}")
    try:
        return len(list((folder / "task").iterdir())), len(list((folder / "fd").iterdir()))
    except OSError:
        return 0, 0


@contextmanager
def serving(model: str, *flags: object):
    """A server in a process of its own -> (the process, its address); an error unless it ends well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlx_fastvlm.server", "--model", model, "--port", port, "--log-level", "error"]
    process = subprocess.Popen([*map(str, command), *map(str, flags)])
    try:
        wait_until_ready(process, f"http://127.0.0.1:{port}/ready")
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        code = process.wait(60)
    if code:
        raise SystemExit(f"the server ended with {code}")


def wait_until_ready(process: subprocess.Popen, address: str, seconds: float = 300):
    """Until an address answers with status 200."""
    for _ in range(int(seconds * 10)):
        try:
            if httpx.get(address, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None:
            raise SystemExit("the server did not start")
        time.sleep(0.1)
    raise SystemExit(f"the server was not ready within {seconds:g} seconds")


def quantiles(seconds: list[float]) -> str:
    """Median, 99th percentile and maximum in milliseconds."""
    ordered = sorted(seconds) or [float("nan")]
    return " / ".join(f"{ordered[min(len(ordered) - 1, int(len(ordered) * q))] * 1e3:.1f}" for q in (0.5, 0.99, 1))


def draw(seen: Seen, file: str):
    """Memory, threads and files of the server over the requests."""
    from matplotlib.figure import Figure  # noqa: PLC0415  not everybody has matplotlib

    columns = {
        "resident memory, MiB": [(count, size / 2**20) for count, size in seen.memory],
        "threads": [(count, threads) for count, threads, _ in seen.things],
        "open files": [(count, files) for count, _, files in seen.things],
    }
    figure = Figure(figsize=(7, 6), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(len(columns), sharex=True), columns.items()):
        axes.plot(*zip(*points), linewidth=1)
        axes.set(ylabel=name, ylim=(0, None))
    axes.set(xlabel="requests answered")
    figure.savefig(file, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=32, help="clients at once, in a closed loop (%(default)s)")
    parser.add_argument("--requests", type=int, default=500, help="requests in total (%(default)s)")
    parser.add_argument("--rate", type=float, help="requests per second, in an open loop")
    parser.add_argument("--vanish", type=float, default=0.0, help="share of clients that leave midway")
    parser.add_argument(
        "--short", action="store_true", help="images of 64 pixels and answers of 6 tokens, for long runs"
    )
    parser.add_argument("--max-rows", type=int, default=16)
    parser.add_argument("--max-queue", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", help="plot memory, threads and files over the requests to this file")
    arguments = parser.parse_args()

    jobs = make_jobs(arguments.short)
    with serving("demo", "--max-rows", arguments.max_rows, "--max-queue", arguments.max_queue) as (process, address):
        warm = argparse.Namespace(**{**vars(arguments), "requests": arguments.clients, "rate": None, "vanish": 0.0})
        asyncio.run(load(address, jobs, warm, process))  # until it has all its threads
        before = open_things(process)
        start = time.perf_counter()
        seen = asyncio.run(load(address, jobs, arguments, process))
        wall = time.perf_counter() - start
        after = open_things(process)
    print(f"{arguments.requests} requests in {wall:.1f} s, {arguments.requests / wall:.1f} a second")
    print(
        f"right {seen.right}, wrong {len(seen.wrong)}, left in the middle {seen.vanished}, refused {dict(seen.refused)}"
    )
    print(f"to the first text, ms (median / 99% / most): {quantiles(seen.first)}")
    print(f"between pieces, ms: {quantiles(seen.between)}")
    print(f"/health, ms: {quantiles(seen.health)}, asked {len(seen.health)} times")
    tenth = max(1, len(seen.memory) // 10)
    mib = [bytes / 2**20 for _, bytes in seen.memory]
    early, late = statistics.mean(mib[tenth : 2 * tenth]), statistics.mean(mib[-tenth:])
    print(f"resident MiB, second tenth of the time {early:.0f}, last tenth {late:.0f}, most {max(mib):.0f}")
    print(f"threads and files before {before}, after {after}")
    if sum(after) > sum(before):
        seen.wrong.append("the server has more threads or files than before")
    for wrong in seen.wrong[:5]:
        print(f"WRONG {wrong}")
    if arguments.figure:
        draw(seen, arguments.figure)
    return 1 if seen.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
