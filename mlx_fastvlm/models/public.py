"""The package's public face, for the two of transformers' methods that need a room above this one.

``model.generate`` and ``use_cache=True`` hang on the model's class, where transformers' users look for them, and are
made of what lies above it. A subclass in those rooms would carry them too, but then the class of this room, whose name
it would have, would be one that can't generate; and a hook that the rooms above fill is empty until somebody imports
them. So the name is looked up at the call, as a caller would, and the linter lets nobody but ``fastvlm.py`` do that.
"""

from __future__ import annotations

import sys
from typing import Any


def public(name: str) -> Any:
    """A public name of the package, looked up when it is called; nothing here depends on the rooms above."""
    return getattr(sys.modules[__name__.partition(".")[0]], name)
