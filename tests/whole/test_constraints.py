"""constraints.txt fits pyproject.toml: each dependency has one version there, within its range."""

import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.paths import ROOT

tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")  # from Python 3.11 on

UNPINNED = {"ipython", "pre-commit"}  # constraints.txt says why
EXTRAS = ("cpu", "plot", "video", "server", "docs", "test", "dev")


@pytest.fixture(scope="module")
def pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins)
    found = {canonicalize_name(name): Version(version) for name, version in pins}
    assert len(found) == len(pins)
    return found


@pytest.fixture(scope="module")
def required():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = (line for name in EXTRAS for line in project["optional-dependencies"][name])
    needed = map(Requirement, (*project["dependencies"], *extras))
    return [need for need in needed if need.name != project["name"]]


def test_every_dependency_has_a_version_in_its_range(pinned, required):
    names = {canonicalize_name(need.name) for need in required}
    assert names - pinned.keys() == UNPINNED
    assert len(names) > 15
    for need in required:
        if need.name not in UNPINNED:
            assert need.specifier.contains(pinned[canonicalize_name(need.name)]), need
    assert pinned["mlx-cpu"] == pinned["mlx"]  # mlx[cpu] asks for it


def test_mlx_lm_has_an_upper_bound(required):
    """Its caches are subclassed: tests/cache/test_mlx_lm_contract.py."""
    (need,) = (need for need in required if need.name == "mlx-lm")
    assert any(part.operator == "<" for part in need.specifier)


def test_the_gate_can_use_it():
    """By pip's own variable, which the README's command in the gate heeds."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.search(r"^PIP_CONSTRAINT=\"\$PWD/constraints.txt\" \.ci/run", page, re.M)
