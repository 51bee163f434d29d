"""An animation takes memory for one of its frames, however many become images."""

import json
import sys

import pytest

from tests.processing.test_images_frames import gif_of_dots
from tests.support.paths import ROOT
from tests.support.processes import run

# What the process has ever had in memory, in MB. A child's ru_maxrss is not below its parent's on Linux.
PEAK = """
import json, resource, sys
from pathlib import Path

def peak():
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
"""
ONE_ANSWER = """
from mlx_fastvlm.generate import main
code = main(["--model", sys.argv[1], "--image", sys.argv[2], "--frames", sys.argv[3], "--max-tokens", "1"])
print(json.dumps([code, peak()]))
"""
ONE_QUESTION = """
from mlx_fastvlm import ChatSession, load
from mlx_fastvlm.cli.repl import Repl
session = ChatSession(*load(sys.argv[1]), max_tokens=1, frames=int(sys.argv[3]))
Repl(session, [sys.argv[2]])._handle("What is this?")
print(json.dumps([len(session.images) - int(sys.argv[3]), peak()]))
"""


@pytest.mark.parametrize("script", [ONE_ANSWER, ONE_QUESTION], ids=["generate", "chat"])
def test_a_few_bytes_of_30_frames_take_no_gigabytes(script, checkpoint, tmp_path):
    file = tmp_path / "a.gif"
    file.write_bytes(gif_of_dots(5000, 5000, 30))
    assert file.stat().st_size < 900
    done = run([sys.executable, "-c", PEAK + script, checkpoint("apple"), file, 30], cwd=ROOT)
    code, peak = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    assert peak < 400
