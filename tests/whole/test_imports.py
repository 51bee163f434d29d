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


def typing_only(tree):
    """The imports of a file that only type checkers follow."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {id(node) for block in blocks for node in ast.walk(block)}


@functools.cache
def imports(name, run=True):
    """Files of the package that a file imports, also inside functions; ``run``: without those for type checkers."""
    tree, found = ast.parse(FILES[name].read_text(encoding="utf-8")), set()
    unseen = typing_only(tree) if run else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in unseen:
            base = name.split(".")[: -node.level] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                for target in (".".join([*base, alias.name]), ".".join(base), ".".join([*base, "__init__"])):
                    if target in FILES:
                        found.add(target)
                        break
    return frozenset(found)


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
    """A ``noqa`` names its rule, and after two spaces the reason."""
    for file in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            for rules, reason in re.findall(r"# (?:ruff: )?noqa: ([A-Z0-9, ]+?)((?:  .*)?)$", line):
                assert reason.strip(), f"{file}:{number} gives no reason for {rules}"
