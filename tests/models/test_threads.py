"""Whatever computes in a thread leaves nothing that aborts the process at its end."""

import os
import subprocess
import sys
import threading

import mlx.core as mx
import pytest

from mlx_fastvlm import convert, load
from tests.support.images import IMAGE

BEGIN = """
import sys, threading
from mlx_fastvlm import FastVlmForConditionalGeneration, load, stream_generate

folder, image = sys.argv[1:]

def in_threads(function, count):
    threads = [threading.Thread(target=function) for _ in range(count)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()

"""
CASES = {
    "load": "in_threads(lambda: load(folder), 8)",
    "from_pretrained": "in_threads(lambda: FastVlmForConditionalGeneration.from_pretrained(folder), 4)",
    "lazily": "in_threads(lambda: load(folder, lazy=True), 4)",
    "a stream that another thread ends": """
stream = stream_generate(*load(folder), "Hi", image, max_tokens=9)
next(stream)
in_threads(lambda: list(stream), 1)
""",
    "a stream that many advance": """
stream = stream_generate(*load(folder), "Hi", image, max_tokens=9)
for _ in range(12): in_threads(lambda: next(stream, None), 1)
""",
}


@pytest.mark.parametrize("case", CASES)
def test_threads_leave_nothing_that_breaks_the_end_of_the_process(case, checkpoint, tmp_path):
    IMAGE.save(tmp_path / "image.png")
    code = BEGIN + CASES[case] + "\nprint('done')"
    command = [sys.executable, "-c", code, checkpoint("apple"), tmp_path / "image.png"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


COMPUTE = {
    "the tower": lambda model, _: model.vision_tower(mx.zeros((1, 64, 64, 3))),
    "image features": lambda model, _: model.get_image_features(mx.zeros((1, 64, 64, 3))),
    "the decoder": lambda model, _: model.language_model(mx.zeros((1, 2, 64))),
    "logits": lambda model, _: model(mx.array([[1, 2, 3]])),
    "load": lambda _, folder: load(folder / "saved", lazy=True),
    "convert": lambda _, folder: convert(folder / "saved", folder / "converted"),
    "save": lambda model, folder: model.save_pretrained(folder / "again"),
}


@pytest.mark.parametrize("compute", COMPUTE.values(), ids=COMPUTE)
def test_streams_end_with_their_thread(compute, small_model, tmp_path, monkeypatch):
    """Once, and in it, long before the process ends."""
    model, processor = small_model
    model.save_pretrained(tmp_path / "saved", processor=processor)
    ended = []
    clear = mx.clear_streams
    monkeypatch.setattr(mx, "clear_streams", lambda: ended.append(threading.get_ident()) or clear())
    thread = threading.Thread(target=compute, args=(model, tmp_path))
    thread.start()
    ident = thread.ident
    thread.join(300)
    assert ended == [ident]


FORK = """
import os, sys, signal
from mlx_fastvlm import generate, load

folder, early = sys.argv[1], sys.argv[2] == "early"
if not early:
    model, processor = load(folder)
    generate(model, processor, "Hi", max_tokens=2)
child = os.fork()
if child == 0:
    signal.alarm(60)  # it would wait for ever
    try:
        if early:
            model, processor = load(folder)
        processor.preprocess(sys.argv[3])
        print(len(generate(model, processor, "Hi", max_tokens=2)) >= 0, flush=True)
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize(("when", "told"), [("late", "processes by 'spawn'"), ("early", "True")])
def test_a_forked_process_says_that_it_can_not_compute(when, told, checkpoint, tmp_path):
    """Where it can't; images it can preprocess, and forked before anything was loaded it can do everything."""
    IMAGE.save(tmp_path / "image.png")
    command = [sys.executable, "-c", FORK, checkpoint("apple"), when, tmp_path / "image.png"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert told in done.stdout
