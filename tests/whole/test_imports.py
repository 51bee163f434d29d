"""The house stands: few levels of imports, no circle, and every exception to a rule says why.

``lint-imports`` holds floors and rooms (pyproject.toml); this counts what it does not.
"""

import ast
import functools
import re

from tests.support.paths import ROOT

PACKAGE = ROOT / "mlx_fastvlm"
FILES = {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")}
LEVELS = 10


def named(name, skip=frozenset()):
    """What a file imports from the package, also inside functions: (file, name in it or None) of each."""
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level and (node.lineno not in skip):
            above = name.split(".")[: len(name.split(".")) - node.level]
            base = above + (node.module.split(".") if node.module else [])
            for alias in node.names:
                if ".".join([*base, alias.name]) in FILES:
                    yield ".".join([*base, alias.name]), None
                else:
                    yield (
                        next(file for file in (".".join(base), ".".join([*base, "__init__"])) if file in FILES),
                        alias.name,
                    )


def defining(file, name):
    """Where a room's ``__init__`` only hands a name on: the file that it comes from."""
    if file.endswith("__init__"):
        return next((defining(*source) for source in named(file) if source[1] == name), file)
    return file


@functools.cache
def imports(name, run=True):
    """Files of the package that a file imports; ``run``: without those that only type checkers follow."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    unseen = {node.lineno for block in blocks for node in ast.walk(block) if isinstance(node, ast.ImportFrom)}
    return frozenset(defining(*source) for source in named(name, unseen if run else frozenset()))


def levels():
    """Each file's level: 1 where it imports no other, else one more than the highest that it imports."""

    @functools.cache
    def level(name):
        return 1 + max(map(level, imports(name)), default=0)

    return {name: level(name) for name in FILES}


def test_few_levels_of_imports():
    found = levels()
    chain = [max(found, key=found.get)]
    while below := [other for other in imports(chain[-1]) if found[other] == found[chain[-1]] - 1]:
        chain.append(min(below))
    print(f"{max(found.values())} import levels: {' -> '.join(chain)}")  # noqa: T201  for pytest -s
    assert max(found.values()) <= LEVELS, " -> ".join(chain)


def test_no_circle_for_type_checkers_either():
    """Strongly connected files, over all imports."""
    reached = {name: set(imports(name, run=False)) for name in FILES if name != "__init__"}  # which names everything
    for _ in reached:
        for targets in reached.values():
            targets |= {further for target in list(targets) for further in reached.get(target, ())}
    assert [name for name, targets in reached.items() if name in targets] == []


def test_no_file_is_too_long():
    for folder, most in ((PACKAGE, 500), (ROOT / "tests", 400)):
        for file in folder.rglob("*.py"):
            assert len(file.read_text(encoding="utf-8").splitlines()) <= most, file


def test_exceptions_say_why():
    """A ``noqa`` or a ``type: ignore`` names its rule, and after two spaces the reason."""
    for file in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            for rules, reason in re.findall(r"# (?:ruff: )?noqa: ([A-Z0-9, ]+?)((?:  .*)?)$", line):
                assert reason.strip(), f"{file}:{number} gives no reason for {rules}"
            for rules, reason in re.findall(r"# type: ignore\[([a-z, -]+)\]((?:  .*)?)$", line):
                assert reason.strip(), f"{file}:{number} gives no reason for ignoring {rules}"


def test_skips_say_what_is_missing():
    for file in (ROOT / "tests").rglob("*.py"):
        for name in re.findall(r"importorskip\(\s*\"([\w.]+)\"\s*\)", file.read_text(encoding="utf-8")):
            raise AssertionError(f"{file} skips without {name} and does not say what to install")
