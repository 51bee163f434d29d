"""What the Markdown files point at is there: files, headings, commands, tests."""

import ast
import re
import urllib.parse

import pytest

import mlx_fastvlm
from tests.support.paths import ROOT
from tests.support.scripts import load_script

PAGES = [
    page
    for page in sorted(ROOT.rglob("*.md"))
    if not any(part.startswith(".") or part in ("build", "site", "dist") for part in page.relative_to(ROOT).parts)
]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"")
CODE = re.compile(r"^```.*?^```", re.M | re.S)


def text(page):
    return page.read_text(encoding="utf-8")


def anchors(page):
    """GitHub's and MkDocs' names of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", text(page)), re.M)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading) for heading in headings)
    return {re.sub(r" ", "-", re.sub(r"[^\w\- ]", "", heading.strip().lower())) for heading in plain}


def ids(page):
    return str(page.relative_to(ROOT))


def test_there_are_pages():
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md"} <= {ids(page) for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links(page):
    for found in LINK.finditer(CODE.sub("", text(page))):
        address, _, anchor = (found[1] or found[2]).partition("#")
        if re.match(r"[a-z]+:", address):
            assert urllib.parse.urlparse(address).netloc, address
            continue
        target = (page.parent / urllib.parse.unquote(address)).resolve() if address else page
        assert target.is_relative_to(ROOT), f"{page} links out of the repository: {address}"
        assert target.exists(), f"{page} links to {address}, which is not there"
        assert not anchor or anchor in anchors(target), f"{page} links to #{anchor}, which {target} has no heading for"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_scripts_and_modules_in_commands(page):
    for script in re.findall(r"\bpython3? ((?!-)[\w./-]+\.py)", text(page)):
        assert (ROOT / script).is_file(), f"{page} runs {script}, which is not there"
    for module in re.findall(r"\bpython3? -m ((?:mlx_fastvlm|tests)\.[\w.]+\w)", text(page)):
        places = (f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__main__.py")
        assert any((ROOT / place).is_file() for place in places), f"{page} runs {module}, which is not there"
    for path in re.findall(r"`((?:mlx_fastvlm|tests|examples|benchmarks|docs)/[\w./-]+)`", text(page)):
        assert (ROOT / path).exists(), f"{page} names {path}, which is not there"


def test_flags_in_commands():
    """Of the package's own commands: every flag that a page shows is one that the command has."""
    folders = (
        "mlx_fastvlm/*.py",
        "mlx_fastvlm/*/__main__.py",
        "examples/**/*.py",
        "benchmarks/*.py",
        "tests/support/reference/*.py",
        "tests/whole/*.py",
    )
    known = {
        flag
        for file in (file for folder in folders for file in ROOT.glob(folder))
        for flag in re.findall(r"\"(--[a-z][a-z-]+)\"", text(file))
    }
    for page in PAGES:
        for command in re.findall(
            r"^(?:python3?|fastvlm) (?!-m (?:pytest|build|venv|twine|pip|lmms_eval)).*$", text(page), re.M
        ):
            unknown = set(re.findall(r"(?<= )--[a-z][a-z-]+", command)) - known
            assert not unknown, f"{page}: {command}"


@pytest.mark.parametrize("page", ["performance.md", "reference.md", "security.md", "transformers_tests.md"])
def test_tests_that_pages_name(page):
    """docs/reference.md lists a test for each capability, docs/security.md one for each promise, and so on."""
    named = re.findall(r"`((?:\w+/)*test_\w+\.py)`: ((?:`test_\w+`(?:, )?)+)", text(ROOT / "docs" / page))
    assert len(named) > 10
    for file, tests in named:
        tree = ast.parse(text(ROOT / "tests" / file))
        there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert set(re.findall(r"test_\w+", tests)) <= there, file


def test_python_in_pages_is_valid():
    for page in PAGES:
        for code in re.findall(r"^```python\n(.*?)^```", text(page), re.M | re.S):
            compile(code, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs", reason="needs mkdocs, of the extra docs")
    pytest.importorskip("material", reason="needs mkdocs-material, of the extra docs")
    from mkdocs.commands.build import build  # noqa: PLC0415  optional
    from mkdocs.config import load_config  # noqa: PLC0415  optional

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    page = (tmp_path / "architecture" / "index.html").read_text(encoding="utf-8")
    assert "architecture.svg" in page
    assert not re.search(r'(?:href|src)="[^":]*(?:README\.md|\.py)"', page)


def test_the_architecture_is_drawn_from_the_configuration():
    architecture = load_script("docs/figures/architecture.py")
    assert architecture.draw() == text(ROOT / "docs" / "figures" / "architecture.svg")


@pytest.mark.parametrize("name", ["flags", "names"])
def test_reference_pages_are_written_from_the_code(name):
    """After a change: python docs/figures/flags.py, or names.py."""
    assert load_script(f"docs/figures/{name}.py").page() == text(ROOT / "docs" / f"{name}.md")


def test_the_reference_has_every_public_name():
    names = load_script("docs/figures/names.py")
    assert {name for group in names.GROUPS.values() for name in group} == set(mlx_fastvlm._HOME)


def test_the_quantization_figure_is_drawn_from_the_table():
    figure = load_script("docs/figures/quantization.py")
    assert len(figure.rows()) == 10
    assert figure.draw() == text(ROOT / "docs" / "figures" / "quantization.svg")


def test_the_front_image_shows_what_the_terminal_does():
    pytest.importorskip("matplotlib", reason="needs matplotlib, of the extra test")
    front = load_script("docs/figures/front.py")
    answer = "A big blue star, a big orange square, a big green triangle and a big cyan triangle."
    lines = [line for line, _ in front.session()]
    assert lines[1] == answer
    assert lines[5:7] == ["examples/images/shapes-1.png goes with the next question.", "/help lists the commands."]
    assert lines[7:] == ["> What colour is the star?", "Blue.", *lines[9:]]
    assert front.draw(lines=[(line, "white") for line in lines]).width > 1500


def test_the_architecture_page_knows_every_room():
    package, page = ROOT / "mlx_fastvlm", text(ROOT / "docs" / "architecture.md")
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    for room in rooms:
        assert f"`{room}/`" in page or f"`{room}`" in page, room
    for command in re.findall(r'^    "(\w+)": "', text(package / "__main__.py"), re.M):
        assert f"`{command}`" in page, command
    story = re.findall(r"^\d\. \[`[\w/.]+`\]\(\.\./mlx_fastvlm/([\w/.]+)\)", page, re.M)
    assert len(story) == 8
