"""What happens before MLX is imported; and what is said where it was imported before."""

import ctypes
import os
import subprocess
import sys

import pytest

LATE, EARLY = "import mlx.core, mlx_fastvlm", "import mlx_fastvlm, mlx.core"


def said(code, **environment):
    kept = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "MLX_FASTVLM_OPENBLAS")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**kept, **environment})
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture
def openblas():
    if sys.platform != "linux":
        pytest.skip("for Linux, where MLX brings a slow BLAS")
    try:
        ctypes.CDLL("libopenblas.so.0")
    except OSError:
        pytest.skip("needs OpenBLAS")


def test_a_late_import_says_what_it_costs(openblas):
    assert "import mlx_fastvlm first" in said(LATE)
    assert said(EARLY) == ""
    assert said(LATE, LD_PRELOAD="libopenblas.so.0") == ""
    assert said(LATE, MLX_FASTVLM_OPENBLAS="0") == ""
