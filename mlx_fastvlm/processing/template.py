"""Chat templates: the usual one, and strangers', rendered so that they can do no harm."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

from ..files import read_optional_json, read_text

# ChatML with Qwen2's default system prompt, which FastVLM was trained with (conv_mode "qwen_2" of Apple's predict.py).
# Used where a checkpoint brings no template of its own.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

MAX_STEPS = 100_000  # rounds of loops and calls in one rendering
# Characters of a rendering, and of any text on the way to it. Messages are short stand-ins there.
MAX_LENGTH = 10**6

# jinja2's filters but for those that make long texts of short ones.
_FILTERS = {
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "int", "items", "last",
    "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "round", "safe", "select",
    "selectattr", "sort", "string", "sum", "title", "tojson", "trim", "unique", "upper",
}  # fmt: skip
_LENGTHENING = {
    "center", "expandtabs", "format", "format_map", "join", "ljust", "replace", "rjust", "translate", "zfill",
}  # fmt: skip


@functools.lru_cache(maxsize=8)
def compile_template(template: str):
    """A template's render function.

    jinja2's sandbox keeps a stranger's template from running code. It may still loop forever or fill the memory; so its
    loops and calls are counted, its output too, and what could make a huge text in one step is not there.
    """
    from jinja2 import TemplateError, nodes
    from jinja2.filters import make_attrgetter
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.visitor import NodeTransformer

    taken = threading.local()  # .steps and .length of the rendering at hand

    def complain(message: str):
        raise TemplateError(message)

    def step():
        taken.steps += 1
        if taken.steps > MAX_STEPS:
            complain("it takes too many steps")

    def counted(values):
        """A loop's values."""
        for value in values:
            step()
            yield value

    def checked(value, length: int | None = None):
        """A value, unless it is (or, of the length given, would be) too long a text."""
        if (len(value) if length is None and isinstance(value, (str, list)) else length or 0) > MAX_LENGTH:
            complain("it makes too long a text")
        return value

    def output(value) -> str:
        text = str(value)
        taken.length += len(text)
        return checked(text, taken.length)

    def join(values, d="", attribute=None) -> str:
        values = list(counted(values))
        if attribute is not None:
            values = list(map(make_attrgetter(environment, attribute), values))
        values, d = list(map(str, values)), str(d)
        checked(values, sum(map(len, values)) + len(d) * len(values))
        return d.join(values)

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["+", "*", "**", "%"])

        def call(self, context, called, *args, **kwargs):
            step()
            name = getattr(called, "__name__", "")
            if name in _LENGTHENING and not isinstance(called, type(step)):
                complain(f"it uses {name}(), which chat templates don't need")
            return checked(super().call(context, called, *args, **kwargs))

        def call_binop(self, context, operator, left, right):
            numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
            if operator == "**" or (operator != "+" and not numbers):
                complain(f"it uses {operator} on texts or for powers, which chat templates don't need")
            if not numbers and hasattr(left, "__len__") and hasattr(right, "__len__"):
                checked(None, len(left) + len(right))
            return super().call_binop(context, operator, left, right)

    class Counting(NodeTransformer):
        """Puts the counters above into a template's tree."""

        def visit_For(self, node):
            self.generic_visit(node)
            node.iter = nodes.Filter(node.iter, "counted", [], [], None, None)
            return node

        def visit_Concat(self, node):  # ~
            self.generic_visit(node)
            return nodes.Filter(nodes.List(node.nodes, lineno=node.lineno), "join", [], [], None, None)

        def visit_Output(self, node):
            self.generic_visit(node)
            texts = [nodes.Const(n.data) if isinstance(n, nodes.TemplateData) else n for n in node.nodes]
            node.nodes = [nodes.Filter(text, "output", [], [], None, None) for text in texts]
            return node

    environment = Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters = {name: environment.filters[name] for name in _FILTERS}
    environment.filters |= {"counted": counted, "join": join, "output": output}
    environment.globals = {name: environment.globals[name] for name in ("range", "dict", "namespace")}
    environment.globals["raise_exception"] = complain
    program = None

    def render(**values) -> str:
        nonlocal program
        taken.steps = taken.length = 0
        try:
            if program is None:
                program = environment.from_string(Counting().visit(environment.parse(checked(template))))
            return program.render(**values)
        except Exception as error:  # a template may fail in any way
            raise ValueError(f"The checkpoint's chat template failed ({error}).") from None

    return render


def read_template(folder: Path, settings: dict[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return read_text(file)
    template = read_optional_json(folder / "chat_template.json").get("chat_template") or settings.get("chat_template")
    return template if isinstance(template, str) else DEFAULT_TEMPLATE
