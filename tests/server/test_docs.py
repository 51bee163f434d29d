"""docs/server.md says what the code does: its tables, its defaults, and its Python, which runs against a server."""

import re
import runpy
import sys

import pytest
from PIL import Image

from mlx_fastvlm.server.settings import ServerSettings
from tests.support.paths import ROOT
from tests.support.scripts import load_script
from tests.support.server import running

PAGE = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
FIELDS = load_script("docs/figures/fields.py")
CODE = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)


@pytest.mark.parametrize("heading", FIELDS.TABLES)
def test_tables(heading):
    assert f"### {heading}\n\n{FIELDS.table(FIELDS.TABLES[heading])}\n" in PAGE


def test_limits():
    """A flag's default, wherever a row of the page names the flag."""
    shown = dict(re.findall(r"^\|[^|]*\| `(--[a-z-]+)` \| ([\d.]+(?: MB| million)?) \|$", PAGE, re.M))
    assert len(shown) >= 7
    for flag, value in shown.items():
        number, _, unit = value.partition(" ")
        default = getattr(ServerSettings(), flag.removeprefix("--").replace("-", "_"))
        assert float(number) * (10**6 if unit else 1) == default, flag


def test_the_default_length():
    assert f"ends after {ServerSettings().default_max_tokens} tokens" in PAGE


def test_images_of_the_page_are_small():
    """docs/figures/page.py takes them."""
    figures = ROOT / "docs" / "figures"
    shown = re.findall(r"\(figures/(page-\w+\.png)\)", PAGE)
    assert len(shown) == 3
    assert all((figures / name).stat().st_size <= 150_000 for name in shown)
    assert (figures / "live.gif").stat().st_size <= 1_500_000


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


@pytest.mark.parametrize("code", CODE, ids=lambda code: re.findall(r"^(?:from|import) (\w+)", code, re.M)[-1])
def test_python(code, server, tmp_path, monkeypatch, capsys):
    for module in re.findall(r"^(?:from|import) (\w+)", code, re.M):
        pytest.importorskip(module, reason=f"needs the package {module}")
    Image.open(ROOT / "examples" / "images" / "shapes-1.png").save(tmp_path / "photo.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    program = code.replace("http://127.0.0.1:8080", server.url).replace("apple/FastVLM-0.5B", "demo")
    assert program != code
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["program.py"])
    runpy.run_path("program.py", run_name="__main__")
    assert len(capsys.readouterr().out) > 3
