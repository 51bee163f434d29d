"""The package's public face, for the few of transformers' methods that need a room above this one."""

from __future__ import annotations

import sys
from typing import Any


def public(name: str) -> Any:
    """A public name of the package, looked up when it is called; nothing here depends on the rooms above."""
    return getattr(sys.modules[__name__.partition(".")[0]], name)
