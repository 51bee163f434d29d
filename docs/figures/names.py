"""Writes docs/names.md: every public name, with its signature and docstring; a test compares them with the page.

python docs/figures/names.py
"""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import mlx_fastvlm

PAGE = Path(__file__).parents[1] / "names.md"
HEAD = """\
# Every public name

What `from mlx_fastvlm import ...` offers, from the docstrings themselves; `help(NAME)` prints the same.
"""
GROUPS = {
    "Load and answer": ["load", "generate", "stream_generate", "astream_generate", "batch_generate", "ChatSession"],
    "Choose and constrain": ["decide", "batch_decide", "Decision", "GenerationOptions"],
    "Many answers": ["Engine", "Answer", "GenerationResponse"],
    "Caches": ["PromptCache", "save_prompt_cache", "load_prompt_cache", "PrefixCache", "VisionCache", "make_cache"],
    "Convert": ["convert"],
    "The model, as in transformers": [
        "FastVlmForConditionalGeneration",
        "FastVlmModel",
        "FastVlmProcessor",
        "FastVlmConfig",
        "TextConfig",
        "VisionConfig",
        "generate_ids",
        "GenerateOutput",
        "FastVlmCausalLMOutputWithPast",
        "FastVlmModelOutputWithPast",
    ],
    "Its parts": ["FastViTHD", "FastVlmMultiModalProjector", "Qwen2Model"],
    "Images and video": ["load_image", "load_frames", "load_video"],
}
SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields")


def page():
    """The page, as Markdown."""
    lines = [HEAD]
    for title, names in GROUPS.items():
        lines.append(f"## {title}\n")
        for name in names:
            lines += _entry(name, getattr(mlx_fastvlm, name))
    return "\n".join(lines).rstrip() + "\n"


def _entry(name, thing):
    lines = [f"### {name}\n", f"```text\n{_signature(name, thing)}\n```\n", described(thing)]
    if inspect.isclass(thing):
        own = [(each, value) for each, value in _members(thing) if inspect.getdoc(value)]
        for each, value in own:
            lines += [f"**`{name}.{_signature(each, value)}`**\n", described(value)]
    return lines


def _members(cls):
    """Public methods and properties, the inherited ones of this package too."""
    found = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("mlx_fastvlm"):
            found |= {name: value for name, value in vars(base).items() if not name.startswith("_")}
    for name, value in found.items():
        if isinstance(value, (classmethod, staticmethod)):
            yield name, value.__func__
        elif inspect.isfunction(value) or isinstance(value, property):
            yield name, value


def _signature(name, thing):
    if isinstance(thing, property):
        return name
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return name
    words = []
    star = False
    options = set() if name == "GenerationOptions" else {field.name for field in fields(mlx_fastvlm.GenerationOptions)}
    listed = [one for one in signature.parameters.values() if one.kind is one.KEYWORD_ONLY and one.name in options]
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls") or (len(listed) > 20 and parameter in listed):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            words, star = [*words, "*"], True
        star = star or parameter.kind is parameter.VAR_POSITIONAL
        default = "" if parameter.default is parameter.empty else f"={_default(parameter.default)}"
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        words.append(f"{stars}{parameter.name}{default}")
    return f"{name}({', '.join([*words, *(['**options'] if len(listed) > 20 else [])])})"


def _default(value):
    plain = isinstance(value, (bool, int, float, str, tuple, type(None)))
    return repr(value) if plain else "..."


def described(thing):
    """A docstring as Markdown: sections in bold, their entries as a list, references as code."""
    text, options, _ = (inspect.getdoc(thing) or "").partition("\nOptions:\n")
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    lines = []
    inside = False
    for line in text.replace("``", "`").splitlines():
        title = line.rstrip(":")
        if title in SECTIONS and line.endswith(":"):
            lines, inside = [*lines, f"**{title}**", ""], True
        elif inside and re.match(r" {4}\S", line):
            name, colon, rest = line.strip().partition(": ")
            lines.append(f"- `{name}`: {rest}" if colon and "`" not in name else f"- {line.strip()}")
        elif inside and line.startswith("     "):
            lines[-1] += " " + line.strip()
        else:
            inside = inside and not line.strip()
            lines.append(line)
    if options:
        lines.append("**Options**: those of [GenerationOptions](#generationoptions).")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
