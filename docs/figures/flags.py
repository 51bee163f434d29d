"""Writes docs/flags.md: every flag of every command, from the parsers themselves; a test compares them with the page.

python docs/figures/flags.py
"""

import importlib
from pathlib import Path

from mlx_fastvlm.__main__ import COMMANDS, MODULES

PAGE = Path(__file__).parents[1] / "flags.md"
HEAD = """\
# Every flag

`fastvlm COMMAND --help` prints the same; `fastvlm chat` is short for `python -m mlx_fastvlm.chat`, and so on. Defaults
stand in brackets. Without a command, `fastvlm` asks about images. Every command has `--version` and `--help`.
"""
LEFT_OUT = ("--help", "--version")


def page():
    """The page, as Markdown."""
    return "\n".join([HEAD, *map(_command, COMMANDS)])


def _command(name):
    parser = importlib.import_module(f"mlx_fastvlm.{MODULES.get(name, name)}").parser()
    lines = [f"## {name}\n", f"{parser.description}\n"]
    for group in parser._action_groups:
        rows = [_row(parser, action) for action in group._group_actions if not set(action.option_strings) & {*LEFT_OUT}]
        if rows:
            lines += [f"**{_capital(group.title)}**\n", "| flag | what it does |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _row(parser, action):
    formatter = parser._get_formatter()
    default = formatter._get_default_metavar_for_optional(action)
    value = "" if action.nargs == 0 else formatter._format_args(action, default)
    names = ", ".join(action.option_strings) or value
    shown = f"{names} {value}".strip() if action.option_strings else value
    text = formatter._get_help_string(action) % {**vars(action), "prog": parser.prog}
    needed = "; required" if action.required and action.option_strings else ""
    return f"| `{shown}` | {_capital(text)}{needed} |".replace("<", "&lt;")


def _capital(text):
    return text[:1].upper() + text[1:]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
