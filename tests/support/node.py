"""Node, which runs the page's modules where there is no browser."""

import os
import shutil
import subprocess

import pytest

from .paths import ROOT


def no_node():
    """Why its tests can't run here; None where they can."""
    if shutil.which("node") is None:
        return "needs node"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
    major, minor = map(int, version.removeprefix("v").split(".")[:2])
    known = (major, minor) >= (22, 7) or (major == 20 and minor >= 19)
    return None if known else f"needs a node that knows modules by their content (20.19, 22.7), not {version}"


NO_NODE = no_node()
needs_node = pytest.mark.skipif(NO_NODE is not None, reason=str(NO_NODE))


def node(*arguments, **environment):
    done = subprocess.run(
        ["node", "--no-warnings", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return done.stdout
