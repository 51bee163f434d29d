"""The C++ compiler: MLX runs it to fuse operations on a CPU, and our own kernels' bodies are tested through it."""

import shutil

import pytest

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler (g++)")
