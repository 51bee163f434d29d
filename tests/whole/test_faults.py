"""Short memory, full disks, Ctrl-C, closed pipes, processes that were killed: one line, and nothing half-written."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_fastvlm import ChatSession, PromptCache, convert, generate, load, save_prompt_cache
from mlx_fastvlm.cli.repl import Repl
from mlx_fastvlm.files import atomic_file, atomic_folder
from mlx_fastvlm.generate import main
from mlx_fastvlm.models import memory
from tests.support.images import IMAGE
from tests.support.paths import ROOT, left
from tests.support.processes import run, start


@pytest.fixture
def arguments(checkpoint, tmp_path):
    IMAGE.save(tmp_path / "image.png")
    return ["--model", str(checkpoint("apple")), "--image", str(tmp_path / "image.png"), "--max-tokens", "5"]


# Memory


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(checkpoint, arguments, monkeypatch, capfd):
    monkeypatch.setattr(memory, "free_memory", lambda: 10**6)

    def compute(arrays):  # a single array is the random generator's key
        assert isinstance(arrays, mx.array), "the weights were read"

    monkeypatch.setattr("mlx_fastvlm.models.pretrained.mx.eval", compute)
    with pytest.raises(OSError, match=r"needs about 0\.0 GB of memory and 0\.0 GB are free.*force=True"):
        load(checkpoint("apple"))
    assert main(arguments) == 1
    assert "--force" in capfd.readouterr().err
    load(checkpoint("apple"), lazy=True)


def test_force_goes_on(arguments, monkeypatch, capfd):
    monkeypatch.setattr(memory, "free_memory", lambda: 0)
    assert main([*arguments, "--force"]) == 0
    assert capfd.readouterr().out


def test_the_estimate_knows_the_weights(checkpoint, monkeypatch):
    asked = []
    model, processor = load(checkpoint("apple"), lazy=True)
    size = sum(file.stat().st_size for file in checkpoint("apple").glob("*.safetensors"))
    for free in (int(size * 0.9), size * 2):
        monkeypatch.setattr(memory, "free_memory", lambda free=free: asked.append(free) or free)
        with pytest.raises(OSError, match="close other programs") if free < size else contextlib.nullcontext():
            memory.check_memory("it", model, 64)
    assert len(asked) == 2
    assert processor.image_settings.size == 128


def test_free_memory_of_this_machine():
    free = memory.free_memory()
    assert free is None or 0 < free < 2**50


def test_a_container_that_allows_less_than_the_machine_has(tmp_path, monkeypatch):
    for name, text in (("max", "3000000"), ("current", "2500000"), ("stat", "anon 9\ninactive_file 100000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(memory, "CONTROL_GROUP", tmp_path)
    assert memory._free_in_container() == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._free_in_container() is None


def test_many_questions_take_no_more_memory_than_a_few(small_model):
    """benchmarks/long_run.py measures the process over 600; here MLX's arrays, which are exact."""
    session, held = ChatSession(*small_model, max_tokens=4), []
    for i in range(12):
        image = IMAGE.resize((60 + i, 50))
        generate(*small_model, "Hi", image, max_tokens=4)
        session.reset()
        session.ask("Hi", image)
        held.append(mx.get_active_memory())
    features = held[4] - held[3]  # of the session's images, which it keeps up to a bound
    assert 0 <= features < 10**5
    # A few hundred bytes come and go with what ran before; what eight questions leave would be tens of thousands.
    assert held[-1] - held[3] <= 8 * features + 2**12


# Disks


CONVERSION = """
import resource, sys
from mlx_fastvlm.convert import main
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # a disk that takes no more, as far as a file can tell
sys.exit(main(["--hf-path", sys.argv[1], "--mlx-path", sys.argv[2], "--no-verify", *sys.argv[3:]]))
"""


@pytest.mark.parametrize("kept", [False, True])
def test_a_disk_that_is_full_in_the_midst(checkpoint, tmp_path, kept):
    """The system itself refuses the write, not a stand-in."""
    if kept:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("precious")
    command = [sys.executable, "-c", CONVERSION, checkpoint("apple"), tmp_path / "out", *(["--force"] if kept else [])]
    done = run(command)
    assert (done.returncode, done.stdout) == (1, "")
    assert "out could not be written (File too large); make room. Nothing is kept." in done.stderr
    assert done.stderr.count("\n") == 1
    assert left(tmp_path) == (["out"] if kept else [])
    assert not kept or (tmp_path / "out" / "mine.txt").read_text() == "precious"


def test_a_prompt_cache_is_written_whole_or_not_at_all(small_model, tmp_path, monkeypatch):
    cache = PromptCache()
    generate(*small_model, "Hi", max_tokens=2, prompt_cache=cache)
    file = tmp_path / "any.name"
    save_prompt_cache(file, cache)
    assert left(tmp_path) == ["any.name"]
    before = file.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mlx_fastvlm.cache.prompt_file.mx.save_safetensors", full)
    with pytest.raises(OSError, match="No space left"):
        save_prompt_cache(file, cache)
    assert left(tmp_path) == ["any.name"]
    assert file.read_bytes() == before


def test_a_saved_conversation_too(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr("mlx_fastvlm.cli.repl.write_json", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        Repl(ChatSession(*small_model), [])._save(str(tmp_path / "talk.json"))
    assert left(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["streaming", "json"])
def test_standard_output_that_is_full(arguments, flags):
    command = [sys.executable, "-m", "mlx_fastvlm.generate", *arguments, *flags]
    with open("/dev/full", "w") as full:
        done = run(command, stdout=full)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: [Errno 28] No space left on device"
    assert "Exception ignored" not in done.stderr
    assert "Traceback" not in done.stderr


# Pipes


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["streaming", "json"])
def test_a_reader_that_leaves(arguments, flags):
    command = [sys.executable, "-m", "mlx_fastvlm.generate", *arguments, *flags]
    process = start(command)
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=120) == 1
    assert all(word not in error for word in ("Traceback", "BrokenPipe", "Exception ignored"))


def test_a_terminal_that_knows_no_such_characters(arguments, monkeypatch):
    """The answer comes, with question marks, instead of an encoding error half-way."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "mlx_fastvlm.generate", *arguments]
    done = run(command, env=environment, text=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b"\n")


# Ctrl-C


def interrupted(command, after, environment=None):
    """Run a command and press Ctrl-C when ``after`` says so; (exit code, stderr)."""
    process = start(command, env={**os.environ, **(environment or {})})
    after(process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    return process.returncode, error


# What a stage begins with; it tells the test, and then waits as if the stage were long.
STAGES = {
    "loading": "cli.flags:load",
    "reading an image": "processing.processor:iter_frames",
    "encoding an image": "generation.reading:PromptReader.encode",
    "reading the prompt": "generation.reading:read_piece",
    "answering": "generation.text:TextStream.add",
}
WAITING = """
import importlib, sys, time
def wait(*_, **__):
    print("here", flush=True)
    time.sleep(60)
module, place = sys.argv[1].split(":")
*classes, name = place.split(".")
holder = importlib.import_module("mlx_fastvlm." + module)
setattr(getattr(holder, classes[0]) if classes else holder, name, wait)
sys.exit(importlib.import_module("mlx_fastvlm.generate").main(sys.argv[2:]))
"""


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_at_every_stage(arguments, stage):
    command = [sys.executable, "-c", WAITING, STAGES[stage], *arguments]
    code, error = interrupted(command, lambda process: process.stdout.readline())
    assert (code, error) == (130, "interrupted\n")


def test_ctrl_c_while_importing(arguments, tmp_path):
    (tmp_path / "numpy.py").write_text("print('here', flush=True)\nimport time\ntime.sleep(60)\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-m", "mlx_fastvlm.generate", *arguments]
    code, error = interrupted(command, lambda process: process.stdout.readline(), {"PYTHONPATH": path})
    assert code in (130, -signal.SIGINT)  # as the system reports what a signal ended; a shell says 130
    assert error == "interrupted\n"


# Conversions that were killed, and two at once

SLOW = """
import sys, time
def slowly(amount):
    print("here", flush=True)
    time.sleep(60)
import importlib
convert = importlib.import_module("mlx_fastvlm.convert")
terminal = importlib.import_module("mlx_fastvlm.cli.terminal")
terminal.ProgressBars.__call__ = lambda self, step, amount, total: slowly(amount)
sys.exit(convert.main(["--hf-path", sys.argv[1], "--mlx-path", sys.argv[2], *sys.argv[3:]]))
"""


@contextlib.contextmanager
def a_conversion_in_the_midst(checkpoint, target, *flags):
    command = [sys.executable, "-c", SLOW, checkpoint("apple"), target, *flags]
    process = start(command)
    assert process.stdout.readline() == "here\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_during_a_conversion(checkpoint, tmp_path):
    with a_conversion_in_the_midst(checkpoint, tmp_path / "out") as process:
        assert any(".unfinished-" in name for name in left(tmp_path))
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "interrupted\n")
    assert left(tmp_path) == []


def test_a_conversion_after_one_that_was_killed(checkpoint, tmp_path):
    with a_conversion_in_the_midst(checkpoint, tmp_path / "out"):
        pass
    assert any(".unfinished-" in name for name in left(tmp_path))  # nothing can clean up behind kill -9
    convert(checkpoint("apple"), tmp_path / "out", verify=False)
    assert left(tmp_path) == ["out"]
    load(tmp_path / "out")


def test_two_conversions_to_one_target(checkpoint, tmp_path):
    with (
        a_conversion_in_the_midst(checkpoint, tmp_path / "out"),
        pytest.raises(OSError, match="Another process is writing to"),
    ):
        convert(checkpoint("apple"), tmp_path / "out", force=True)
    convert(checkpoint("apple"), tmp_path / "out", verify=False)
    assert left(tmp_path) == ["out"]


def test_many_writers_to_one_folder(tmp_path):
    """One finishes at a time, whole; the others are told."""
    outcomes = []

    def write(i):
        try:
            with atomic_folder(tmp_path / "out", force=True) as folder:
                for name in "abc":
                    (folder / name).write_text(str(i))
                    time.sleep(0.002)
            outcomes.append("written")
        except OSError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=lambda i=i: [write(i) for _ in range(5)]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 20
    assert "written" in outcomes
    assert all(outcome == "written" or "Another process is writing" in outcome for outcome in outcomes)
    assert left(tmp_path) == ["out"]
    assert len({(tmp_path / "out" / name).read_text() for name in "abc"}) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from mlx_fastvlm.files import atomic_folder
rename = Path.rename
def rename_and_die(path, to):
    rename(path, to)
    os.kill(os.getpid(), signal.SIGKILL)
Path.rename = rename_and_die
with atomic_folder(Path(sys.argv[1]), force=True):
    pass
"""


def test_what_was_moved_away_comes_back_after_a_kill(tmp_path):
    """Killed between the two renames that replace a folder."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path / "out"]).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileExistsError), atomic_folder(tmp_path / "out"):
        pytest.fail("it was there before")
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"
    assert left(tmp_path) == ["out"]


def test_a_file_that_is_replaced_only_when_whole(tmp_path):
    (tmp_path / "a.txt").write_text("old")

    def half():
        with atomic_file(tmp_path / "a.txt") as file:
            file.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert (tmp_path / "a.txt").read_text() == "old"
    with atomic_file(tmp_path / "a.txt") as file:
        file.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert left(tmp_path) == ["a.txt"]
