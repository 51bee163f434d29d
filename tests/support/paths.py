"""Where things lie."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
REFERENCE = Path(__file__).parent / "reference"
SHARED = ROOT.parent / "shared"  # what only the developers have


def left(folder):
    """Everything in a folder, hidden things too."""
    return sorted(path.name for path in folder.iterdir())
