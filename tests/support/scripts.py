"""Scripts of the repository that are in no package, as modules."""

import importlib.util
import sys

from tests.support.paths import ROOT


def load_script(path):
    """The module of a file, by its path from the repository's root."""
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module
