"""The kernels that this package counts on are in MLX's wheel for macOS; skipped where no registry answers."""

import re
import subprocess
import sys
import zipfile
from importlib.metadata import version

import pytest

from mlx_fastvlm.models import gpu
from tests.support.metal import FUSED

WHEEL = ["--no-deps", "--only-binary=:all:", "--platform", "macosx_14_0_arm64", "--python-version", "3.11"]
DECODER_HEADS = (64, 128)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The compiled Metal library of the installed version of MLX."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--retries", "0", "--timeout", "10", *WHEEL]
    try:
        done = subprocess.run(
            [*command, "-d", folder, f"mlx-metal=={version('mlx')}"], capture_output=True, timeout=120
        )
    except subprocess.TimeoutExpired:
        pytest.skip("needs a package registry, to read MLX's macOS wheel")
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        pytest.skip("needs a package registry with MLX's macOS wheel")
    with zipfile.ZipFile(wheels[0]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith("mlx.metallib")]
        return wheel.read(name)


def test_attention_has_kernels_for_our_heads(library):
    names = {name.decode() for name in re.findall(rb"steel_attention_[\w]+|sdpa_vector_[\w]+", library)}
    sizes = {int(size) for name in names for size in re.findall(r"_bd(\d+)", name)}
    assert set(gpu.FUSED_HEADS) <= sizes
    assert sizes >= FUSED
    assert 32 not in sizes  # else the tower's own heads would do
    for size in {*gpu.FUSED_HEADS[:1], *DECODER_HEADS}:
        for dtype in ("bfloat16", "float16", "float32"):
            assert any(name.startswith(f"steel_attention_{dtype}_") and f"_bd{size}_" in name for name in names)
        for dtype in ("bfloat16_t", "float16_t", "float"):
            assert f"sdpa_vector_{dtype}_{size}_{size}" in names


def test_depthwise_convolutions_have_kernels(library):
    names = {name.decode() for name in re.findall(rb"depthwise_conv_2d_\w+", library)}
    assert any(name.endswith(("bfloat16", "bfloat16_t")) for name in names), sorted(names)
