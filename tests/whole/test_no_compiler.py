"""On a CPU, the demo's answers compile nothing at run time; large images do (models/test_compiler.py)."""

import os
import sys

import mlx.core as mx
import pytest

from tests.support.paths import ROOT
from tests.support.processes import run

SAMPLED = ["--temperature", "1", "--top-p", "0.9", "--top-k", "5", "--min-p", "0.1"]
PENALTIES = ["--repetition-penalty", "1.1", "--presence-penalty", "1", "--frequency-penalty", "1"]


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="MLX compiles for a GPU in memory")
@pytest.mark.parametrize("flags", [[], [*SAMPLED, *PENALTIES], ["--kv-bits", "8"], ["--max-kv-size", "300"]], ids=str)
def test_an_answer_leaves_no_compiled_code(flags, tmp_path):
    """MLX's compiler would write to, and load from, a folder of the temporary one, under names that all users share."""
    image = ROOT / "examples" / "images" / "shapes-1.png"
    command = [sys.executable, "-m", "mlx_fastvlm.generate", "--model", "demo", "--image", image, "--max-tokens", "5"]
    done = run([*command, *flags], cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
