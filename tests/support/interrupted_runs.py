"""Runs of ``fastvlm caption`` that end at random moments, again and again, and what they leave in the end.

    python -m tests.support.interrupted_runs [--moments 30] [--kills 0] [--images 150] [--seed 0] [--kinds tar ...]

For each kind of output: at as many moments the run gets ``kill -9`` or Ctrl-C, or its files can't grow beyond a few
kilobytes, as on a full disk, and at more until ``--kills`` of them were ``kill -9``; and now and then one of the tar
shards is replaced meanwhile by one with the same keys.
Then a run to the end follows, and where one of the others had reached it before its moment, another output is begun.
Every key has to be there once, in whole lines and files, and the texts have to be those of a run that nothing has
disturbed. Exit code 1 if not.
"""

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.support.datasets import KINDS, encoded, read_records, write_tar
from tests.support.processes import start

SHARDS = 3


def write_shard(folder, number, images, turned=False):
    """The same keys and pixels; turned, in another order."""
    files = [(f"{i:05}.png", encoded(i)) for i in range(number, images, SHARDS)]
    new = write_tar(folder / f"new-{number}", files[::-1] if turned else files)
    new.replace(folder / f"{number}.tar")


def command(folder, output):
    options = ["--model", "demo", "--image-size", "64", "--max-tokens", "3", "--batch-size", "4", "--quiet"]
    shards = [str(folder / f"{number}.tar") for number in range(SHARDS)]
    return [
        sys.executable,
        "-m",
        "mlx_fastvlm.caption",
        *shards,
        "--output",
        output,
        "--records-per-file",
        "70",
        *options,
    ]


def small_files(limit):
    def before():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write fails, as where the disk is full
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return before


def disturb(folder, output, rng, images, seconds):
    """One run that is ended before its time; returns what ended it."""
    how = rng.choice(("killed", "killed", "interrupted", "full"))
    limit = small_files(rng.randrange(1000, 30_000)) if how == "full" else None
    process = start(command(folder, output), preexec_fn=limit)
    deadline = time.monotonic() + (300 if how == "full" else seconds * rng.random())
    while process.poll() is None and time.monotonic() < deadline:
        if rng.random() < 0.02:
            write_shard(folder, rng.randrange(SHARDS), images, turned=rng.random() < 0.5)
        time.sleep(0.02)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL if how == "killed" else signal.SIGINT)
    _, err = process.communicate(timeout=300)
    known = {0: "had ended", -signal.SIGKILL: "killed", 130: "interrupted", -signal.SIGINT: "interrupted"}
    if process.returncode in known:
        return known[process.returncode]
    assert process.returncode in (1, 3), err  # 3: what could not be read while a shard was replaced
    assert err.count("\n") <= 1, err
    return "full" if process.returncode == 1 else "had ended"


def check(work, kind, images, texts):
    found = read_records(work, kind)
    keys = Counter(record["key"] for record in found)
    assert len(keys) == len(found) == images, (len(keys), len(found), images)
    assert {record["key"]: record.get("text") for record in found} == texts
    left = [file.name for file in work.iterdir() if "unfinished" in file.name or "pending" in file.name]
    assert not left, left


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--moments", type=int, default=30)
    parser.add_argument("--kills", type=int, default=0, help="how many of them are kill -9 at least (0)")
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(SHARDS):
            write_shard(folder, number, args.images)
        begun = time.monotonic()
        whole = start(command(folder, folder / "whole.jsonl"))
        _, err = whole.communicate()
        assert whole.returncode == 0, err
        seconds = time.monotonic() - begun
        texts = {record["key"]: record["text"] for record in read_records(folder, "jsonl", "whole")}
        for kind in args.kinds:
            ends, rounds = Counter(), 0

            def wanted(ends=ends):
                return ends.total() < args.moments or ends["killed"] < args.kills

            while wanted():
                work = folder / f"{kind}-{rounds}"
                work.mkdir()
                output = work / f"out.{kind}"
                while wanted():
                    end = disturb(folder, output, rng, args.images, seconds)
                    if end == "had ended":
                        break
                    ends[end] += 1
                last = start([*command(folder, output), "--retry-errors"])
                _, err = last.communicate()
                assert last.returncode == 0, err
                check(work, kind, args.images, texts)
                rounds += 1
            print(f"{kind}: {dict(ends)}; {rounds} outputs of {args.images} records, every key once", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", os.getcwd())
    main()
