"""MLX's compiler on a CPU: only for large arrays, and only into a folder that is the user's alone."""

import os
import subprocess
import sys

import pytest

from mlx_fastvlm.models import compiler
from tests.support.compilers import needs_compiler

LARGE = """
import mlx_fastvlm
import mlx.core as mx
from mlx_fastvlm.models import activations, cpu_ops
mx.set_default_device(mx.cpu)
x = mx.linspace(-8, 8, 64 * cpu_ops.PIECE // 32).reshape(64, -1)
print(mx.abs(cpu_ops.gelu(x) - activations.gelu(x)).max().item())
"""


def run(code, *arguments, **environment):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


pytestmark = needs_compiler


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files, as MLX and the package see it."""
    folder = tmp_path / "temporary"
    folder.mkdir(mode=0o755)
    monkeypatch.setenv("TMPDIR", str(folder))
    compiler.may_compile.cache_clear()
    yield folder
    compiler.may_compile.cache_clear()


def test_the_folder_is_made_and_the_users_alone(temporary):
    assert compiler.may_compile()
    assert all(folder.stat().st_mode & 0o777 == 0o700 for folder in temporary.rglob("*"))


def writable(temporary):
    (temporary / "mlx").mkdir()
    (temporary / "mlx").chmod(0o777)


def writable_within(temporary):
    (temporary / "mlx").mkdir()
    (temporary / "mlx" / compiler.mx.__version__).mkdir()
    (temporary / "mlx" / compiler.mx.__version__).chmod(0o775)


def link(temporary):
    (temporary.parent / "elsewhere").mkdir()
    (temporary / "mlx").symlink_to(temporary.parent / "elsewhere")


def file(temporary):
    (temporary / "mlx").write_text("")


def replaceable(temporary):
    temporary.chmod(0o777)


def missing(temporary):
    temporary.rmdir()


@pytest.mark.parametrize("made", [writable, writable_within, link, file, replaceable, missing])
def test_a_folder_that_others_may_have_a_hand_in_is_not_used(made, temporary):
    made(temporary)
    assert not compiler.may_compile()


def test_nothing_is_compiled_without_a_compiler(temporary, monkeypatch):
    monkeypatch.setenv("PATH", str(temporary))
    assert not compiler.may_compile()
    assert not (temporary / "mlx").exists()


def test_another_users_folder_is_not_used(temporary, monkeypatch):
    (temporary / "mlx").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: (temporary / "mlx").stat().st_uid + 1)
    assert not compiler.may_compile()


def test_a_folder_of_all_where_names_stay_will_do(temporary):
    """/tmp itself."""
    temporary.chmod(0o1777)
    assert compiler.may_compile()


def test_it_is_the_folder_that_mlx_compiles_into(temporary):
    assert float(run(LARGE)) <= 1e-6
    assert list(temporary.glob("mlx/*/cpu/*.so"))
    assert (temporary / "mlx").stat().st_mode & 0o777 == 0o700


def test_what_others_put_there_is_not_loaded(temporary):
    writable(temporary)
    assert float(run(LARGE)) <= 1e-6
    assert not list(temporary.rglob("*.so"))
