"""The wheel: built from the sdist, installed apart, it works from an empty folder."""

import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.paths import ROOT

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "mlx_fastvlm")


def run(*command, **options):
    done = processes.run(command, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copied(tree):
    """So that nothing is left in the working tree, and nothing in it that git does not know helps."""
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree)
    return tree


EPOCH = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("build", reason="needs build, of the extra test")
    tree, built = copied(tmp_path_factory.mktemp("tree")), tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--outdir", built, tree, env=EPOCH)
    (wheel,) = built.glob("*.whl")
    assert list(built.glob("*.tar.gz"))
    return wheel


def test_another_build_gives_the_same_bytes(wheel, tmp_path):
    """From other folders and files of another date, and without an sdist between; with the same SOURCE_DATE_EPOCH."""
    (tmp_path / "tree").mkdir()
    tree = copied(tmp_path / "tree")
    for path in tree.rglob("*"):
        os.utime(path, (10**9, 10**9))
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "built", tree, env=EPOCH)
    (other,) = (tmp_path / "built").glob("*.whl")
    assert other.read_bytes() == wheel.read_bytes()


def test_it_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    files = (path for path in (ROOT / "mlx_fastvlm").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert names == {str(path.relative_to(ROOT).as_posix()) for path in files}
    assert {"mlx_fastvlm/demo/model.safetensors", "mlx_fastvlm/py.typed"} <= names
    rooms = {"cache", "checkpoints", "cli", "conversion", "evaluation", "generation", "models", "processing"}
    assert {f"mlx_fastvlm/{room}/__init__.py" for room in rooms} <= names


def test_it_works_from_an_empty_folder(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
    env = {**os.environ, "PYTHONPATH": str(site)}
    where = run(sys.executable, "-c", "import mlx_fastvlm; print(mlx_fastvlm.__file__)", env=env, cwd=empty)
    assert Path(where.strip()).parent == site / "mlx_fastvlm"
    image = ROOT / "examples" / "images" / "shapes-8.png"
    command = ["-m", "mlx_fastvlm.generate", "--model", "demo", "--image", image, "--json"]
    assert json.loads(run(sys.executable, *command, env=env, cwd=empty))["text"] == "A small red triangle."
    everything = "import pkgutil, mlx_fastvlm, importlib\n"
    everything += "for module in pkgutil.walk_packages(mlx_fastvlm.__path__, 'mlx_fastvlm.'):\n"
    everything += "    importlib.import_module(module.name)"
    run(sys.executable, "-c", everything, env=env, cwd=empty)
    assert list(empty.iterdir()) == []
    version = run(sys.executable, "-c", "import mlx_fastvlm; print(mlx_fastvlm.__version__)", env=env, cwd=empty)
    assert f"-{version.strip()}-" in wheel.name
    script = site / "bin" / "fastvlm"
    assert run(script, "--version", env=env, cwd=empty) == f"mlx-fastvlm {version}"
    assert json.loads(run(script, *command[2:], env=env, cwd=empty))["text"] == "A small red triangle."
