"""Where things lie."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
REFERENCE = Path(__file__).parent / "reference"
FACTS = Path(__file__).parent / "facts"  # of the released checkpoints; tests/support/reference/facts.py made them
FOUND = Path(__file__).parent / "found"  # images that people made; SOURCES.md says where from
SHARED = ROOT.parent / "shared"  # what only the developers have: all of Qwen2's vocabulary, larger images


def found_images():
    """Images that people made, by name: a clone's, and the larger ones where they are."""
    folders = [SHARED / "images", FOUND]
    return {file.name: file for folder in folders for file in sorted(folder.glob("*")) if file.suffix != ".md"}


def left(folder):
    """Everything in a folder, hidden things too."""
    return sorted(path.name for path in folder.iterdir())
