"""What pages, help and docstrings are written in: plain English, one word for one thing, and spelt right."""

import importlib
import re
import shutil

import pytest

from mlx_fastvlm.__main__ import COMMANDS, MODULES
from tests.support.paths import ROOT
from tests.support.processes import run

# What stumbles, and what to say.
INSTEAD = {
    r"\bpictures?\b": "image",
    r"\blikest\b": "most similar",
    r"\bfilms?\b(?! of)": "video",
    r"\bgoes on where\b": "continues where",
    r"[Ii]nterrupted, it\b": "run it again after an interruption",
    r"\blies over white\b": "is shown on white",
    r"\bthe longest answer\b": "stop after this many tokens",
    r"\bso (?:that )?the answer begins soon\b": "so answers start early",
    r"\bgoes with its area\b": "grows with the image's area",
    r"\bthere is no -p\b": "say what there is",
    r"\bown images\b(?<!your own images)(?<!their own images)(?<!messages' own images)": "your own images",
    r"\b(?:the|a) numbers? of (?:\w+ )?is (?:\w+ )?are\b": "mind the verb",
}
PAGES = [
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            *("index", "generation", "chat", "server", "captions", "conversion", "quantization", "finetuning"),
            *("evaluation", "scale", "demo", "coming-from", "flags", "names"),
        )
    ),
]


def stumbles(text):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    return [(found[0], better) for pattern, better in INSTEAD.items() for found in re.finditer(pattern, text)]


@pytest.mark.parametrize("page", PAGES)
def test_pages(page):
    assert stumbles((ROOT / page).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name):
    command = importlib.import_module(f"mlx_fastvlm.{MODULES.get(name, name)}").parser()
    assert stumbles(command.format_help()) == []


def test_spelling():
    """codespell, as the gate runs it; its settings are in pyproject.toml."""
    codespell = shutil.which("codespell") or pytest.skip("needs codespell, of the extra test")
    done = run([codespell], cwd=ROOT)
    assert done.returncode == 0, done.stdout
