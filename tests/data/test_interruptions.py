"""The law of every sink: whatever stops a run, and as often as it does, in the end each key is there once and nothing
is broken."""

import os
import random
import signal
import sys
import time

import pytest

import mlx_fastvlm.data.lines
from mlx_fastvlm.data.items import Item
from mlx_fastvlm.data.sinks import Destination, open_records
from tests.support.datasets import KINDS, encoded, read_records
from tests.support.interrupts import PACKAGE, interrupted_at
from tests.support.processes import start

PLACES = (f"{PACKAGE}/data/", f"{PACKAGE}/files/")
COUNT = 23


def run(output, count=COUNT, **options):
    """Write what is missing."""
    destination = Destination(str(output), records_per_file=4, **options)
    with open_records(destination, [], {"model": "m"}) as records:
        for number in range(count):
            key = f"sub/é {number}.png"
            if key in records.done:
                continue
            error = number % 5 == 3
            outcome = {"error": "no image"} if error else {"text": "x" * (number % 7 * 300)}
            item = Item(key, None if error else encoded(number))
            records.write(item, {"key": key, **outcome, "model": "m", "prompt": "p"})


def check(folder, kind, count=COUNT, stem="out"):
    found = read_records(folder, kind, stem)
    assert sorted(record["key"] for record in found) == sorted(f"sub/é {i}.png" for i in range(count))
    for record in found:
        number = int(record["key"].split()[1].removesuffix(".png"))
        assert record.get("text") == (None if number % 5 == 3 else "x" * (number % 7 * 300))
    assert not [file.name for file in folder.iterdir() if "unfinished" in file.name or "pending" in file.name]


def lines_of_a_run(folder, kind):
    with interrupted_at(0, PLACES) as passed:
        run(folder / f"out.{kind}")
    return len(passed)


@pytest.fixture
def end_process(monkeypatch):
    """Closes what an interrupt has left open, as the end of a process does, and with it lets go of the locks."""
    held = set()
    opened, closed = os.open, os.close

    def open_(*arguments, **options):
        descriptor = opened(*arguments, **options)
        held.add(descriptor)
        return descriptor

    def close(descriptor):
        closed(descriptor)
        held.discard(descriptor)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "close", close)
    return lambda: [close(descriptor) for descriptor in list(held)]


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_anywhere_again_and_again(tmp_path, kind, end_process):
    rng = random.Random(7)
    (tmp_path / "whole").mkdir()
    lines = lines_of_a_run(tmp_path / "whole", kind)
    check(tmp_path / "whole", kind)
    for attempt in range(25):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        stopped = 0
        while stopped < 4:
            try:
                with interrupted_at(rng.randrange(1, lines), PLACES):
                    run(folder / f"out.{kind}", retry_errors=rng.random() < 0.2)
                break
            except KeyboardInterrupt:
                stopped += 1
                end_process()
        run(folder / f"out.{kind}")
        check(folder, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_full_now_and_then(tmp_path, kind, monkeypatch):
    rng = random.Random(3)
    write = mlx_fastvlm.data.lines.os.write

    def full(descriptor, data):
        if rng.random() < 0.1:
            write(descriptor, data[: rng.randrange(len(data))])
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    def full_too(table, path):
        if rng.random() < 0.5:
            path.write_bytes(b"PAR1")
            raise OSError(28, "No space left on device")
        return write_table(table, path)

    with monkeypatch.context() as patched:
        patched.setattr(mlx_fastvlm.data.lines.os, "write", full)
        if kind == "parquet":
            parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, of the extra test")
            write_table = parquet.write_table
            patched.setattr(parquet, "write_table", full_too)
        for _ in range(30):
            try:
                run(tmp_path / f"out.{kind}")
            except OSError as error:
                assert error.errno == 28  # noqa: PT017  how often it comes is left to chance
    run(tmp_path / f"out.{kind}")
    check(tmp_path, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_off_anywhere(tmp_path, kind):
    """What a machine that loses its power leaves of a file that was being appended to."""
    whole = tmp_path / "whole"
    whole.mkdir()
    destination = Destination(str(whole / f"out.{kind}"), records_per_file=100)
    try:
        with open_records(destination, [], {"model": "m"}) as records:
            for number in range(3):
                key = f"sub/é {number}.png"
                record = {"key": key, "text": "x" * (number % 7 * 300), "model": "m", "prompt": "p"}
                records.write(Item(key, encoded(number)), record)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    name = {"jsonl": "out.jsonl", "parquet": ".out.parquet.pending.jsonl", "tar": ".out.tar.unfinished"}[kind]
    data = (whole / name).read_bytes()
    for at in sorted({0, 1, 9, 10, 11, len(data) - 1, *random.Random(1).sample(range(len(data)), 25)}):
        folder = tmp_path / str(at)
        folder.mkdir()
        (folder / name).write_bytes(data[:at])
        run(folder / f"out.{kind}")
        check(folder, kind)


SCRIPT = """
import sys, time
from pathlib import Path
from tests.data import test_interruptions as law
law.encoded = lambda number, encoded=law.encoded: time.sleep(0.002) or encoded(number)
print("ready", flush=True)
law.run(Path(sys.argv[1]), 400)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_moment(tmp_path, kind):
    rng = random.Random(5)
    killed = 0
    for _ in range(4):
        process = start([sys.executable, "-c", SCRIPT, tmp_path / f"out.{kind}"])
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        time.sleep(rng.random() * 0.5)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        killed += process.returncode == -signal.SIGKILL
    run(tmp_path / f"out.{kind}", 400)
    check(tmp_path, kind, 400)
    assert killed


@pytest.mark.parametrize("kind", KINDS)
def test_two_writers(tmp_path, kind):
    destination = Destination(str(tmp_path / f"out.{kind}"))
    with open_records(destination, [], {"model": "m"}), pytest.raises(OSError, match="Another process is writing"):
        run(tmp_path / f"out.{kind}")
    run(tmp_path / f"out.{kind}")
    check(tmp_path, kind)
