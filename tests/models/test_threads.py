"""Whatever computes in a thread leaves nothing that aborts the process at its end."""

import os
import subprocess
import sys

import pytest

from tests.support.images import PICTURE

BEGIN = """
import sys, tempfile, threading
import mlx_fastvlm
import mlx.core as mx
from mlx_fastvlm import FastVlmForConditionalGeneration, convert, load, stream_generate

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
    "image features": """
model, _ = load(folder)
pixels = mx.random.uniform(shape=(1, 128, 128, 3))
mx.eval(pixels)
in_threads(lambda: mx.eval(model.get_image_features(pixels)), 4)
""",
    "logits": """
model, _ = load(folder)
in_threads(lambda: mx.eval(model(mx.array([[1, 2, 3]])).logits), 4)
""",
    "a stream that another thread ends": """
stream = stream_generate(*load(folder), "Hi", image, max_tokens=9)
next(stream)
in_threads(lambda: list(stream), 1)
""",
    "a stream that many advance": """
stream = stream_generate(*load(folder), "Hi", image, max_tokens=9)
for _ in range(12): in_threads(lambda: next(stream, None), 1)
""",
    "convert": """
place = tempfile.mkdtemp()
in_threads(lambda: convert(folder, place + "/converted"), 1)
""",
    "save": """
model, processor = load(folder)
place = tempfile.mkdtemp()
in_threads(lambda: model.save_pretrained(place + "/saved", processor=processor), 1)
""",
}


@pytest.mark.parametrize("case", CASES)
def test_threads_leave_nothing_that_breaks_the_end_of_the_process(case, checkpoint, tmp_path):
    PICTURE.save(tmp_path / "image.png")
    code = BEGIN + CASES[case] + "\nprint('done')"
    command = [sys.executable, "-c", code, checkpoint("apple"), tmp_path / "image.png"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
