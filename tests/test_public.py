"""The package's face: names that cost nothing until used, real for type checkers and editors."""

import ast
import dataclasses
import inspect
import operator
import re
import sys

import pytest

import mlx_fastvlm
from tests.support.paths import ROOT
from tests.support.processes import run

README = (ROOT / "README.md").read_text(encoding="utf-8")
(PROGRAM,) = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


def test_what_type_checkers_see_is_what_there_is():
    tree = ast.parse((ROOT / "mlx_fastvlm" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {alias.asname: (statement.module, alias.name) for statement in block.body for alias in statement.names}
    assert seen == {name: (home, name) for name, home in mlx_fastvlm._HOME.items()}


def test_every_name_is_there_and_has_a_docstring():
    for name in mlx_fastvlm._HOME:
        assert inspect.getdoc(getattr(mlx_fastvlm, name)), name
    assert set(mlx_fastvlm.__all__) <= set(dir(mlx_fastvlm))


def test_import_is_lazy():
    code = "import sys, mlx_fastvlm; print(sorted(m for m in sys.modules if m.split('.')[0] in "
    code += "('mlx', 'mlx_lm', 'numpy', 'PIL', 'tokenizers', 'jinja2', 'transformers', 'torch')))"
    assert run([sys.executable, "-c", code]).stdout.strip() == "[]"


def test_public_names():
    code = (
        "import mlx_fastvlm\n"
        "from mlx_fastvlm import stream_generate\n"
        "assert callable(mlx_fastvlm.generate)\n"
        "import mlx_fastvlm.generate\n"
        "assert mlx_fastvlm.generate.__name__ == 'generate'\n"
        "for name in mlx_fastvlm.__all__: getattr(mlx_fastvlm, name)\n"
        "assert set(mlx_fastvlm.__all__) <= set(dir(mlx_fastvlm))\n"
        "try: mlx_fastvlm.nothing\n"
        "except AttributeError as error: print(error)\n"
    )
    done = run([sys.executable, "-c", code])
    assert "has no attribute 'nothing'" in done.stdout, done.stderr


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """Errors that ``mypy --strict`` finds in a program that uses the package: (line, code) of each."""
    pytest.importorskip("mypy", reason="needs mypy, of the extra test")
    folder = tmp_path_factory.mktemp("program")

    def strict(program):
        (folder / "program.py").write_text(program, encoding="utf-8")
        command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", "program.py"]
        done = run(command, cwd=folder, env={"MYPYPATH": str(ROOT), "PATH": ""})
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return [
            (int(line), code) for line, code in re.findall(r"^program\.py:(\d+): error: .*\[(.+)\]$", done.stdout, re.M)
        ]

    return strict


def test_the_readmes_program_is_typed(strict):
    assert strict(PROGRAM) == []


def test_what_a_type_checker_refuses(strict):
    lines = len(PROGRAM.splitlines())
    wrong = {
        "generate(model, processor, 'Hi', max_token=5)": "call-arg",
        "stream_generate(model, processor, 'Hi', max_tokens='5')": "arg-type",
        "generate(model, processor)": "call-arg",
        "load(5)": "arg-type",
        "import mlx_fastvlm": None,
        "mlx_fastvlm.astream_generate(model, processor, 'Hi', temp=1)": "call-arg",
        "mlx_fastvlm.nothing": "attr-defined",
        "mlx_fastvlm.batch_generate(model, processor, ['Hi'], kv_bit=8)": "call-arg",
        "mlx_fastvlm.ChatSession(model, processor, stop=5)": "arg-type",
        "mlx_fastvlm.ChatSession(model, processor, 'Be brief.', max_kv_size=500, stop=['a']).ask('Hi')": None,
    }
    expected = [(lines + i, code) for i, code in enumerate(wrong.values(), 1) if code]
    assert strict(PROGRAM + "\n".join(wrong) + "\n") == expected


@pytest.fixture(params=[False, True], ids=["objects", "jedi"])
def complete(request):
    """What IPython offers behind a text: from the objects alone, and with jedi, which reads their source too."""
    completer = pytest.importorskip("IPython.core.completer", reason="needs IPython, of the extra test")
    shell = completer.IPCompleter(namespace={"mlx_fastvlm": mlx_fastvlm, "generate": mlx_fastvlm.generate})
    shell.use_jedi = request.param

    def complete(text):
        with completer.provisionalcompleter():
            return {found.text.rstrip("=") for found in shell.completions(text, len(text))}

    return complete


def test_completion(complete):
    names = {name.rpartition(".")[2] for name in complete("mlx_fastvlm.")}
    assert {"load", "generate", "stream_generate", "ChatSession"} <= names
    assert not {"ctypes", "importlib", "sys", "TYPE_CHECKING"} & names
    assert {"max_tokens", "temperature", "image", "stop"} <= complete("generate(")


@pytest.mark.parametrize("name", ["generate", "stream_generate", "batch_generate", "ChatSession"])
def test_signatures_name_the_options(name):
    """For help(), completion and editors."""
    parameters = inspect.signature(getattr(mlx_fastvlm, name)).parameters
    options = {field.name for field in dataclasses.fields(mlx_fastvlm.GenerationOptions)}
    film = {"video", "fps", "max_frames"}  # which a conversation does not take
    assert options - parameters.keys() == (film if name == "ChatSession" else set())
    assert parameters["max_tokens"].default == mlx_fastvlm.GenerationOptions().max_tokens


@pytest.mark.parametrize("name", ["generate", "astream_generate", "batch_generate", "ChatSession.__init__"])
def test_help_says_what_the_options_do(name):
    shown = inspect.getdoc(operator.attrgetter(name)(mlx_fastvlm))
    assert "max_tokens: " in shown
    assert "prefill_step_size:" in shown
