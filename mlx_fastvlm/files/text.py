"""Text and JSON files of a checkpoint, which may be a stranger's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

SIZE_LIMIT = 64 * 2**20  # bytes; the largest file in use, Qwen2's tokenizer.json, has 11 MB


def check_name(path: str | Path) -> None:
    """``ValueError`` for a name that is not UTF-8: neither MLX nor ``tokenizers`` can open such a file."""
    try:
        str(path).encode()
    except UnicodeEncodeError:  # bytes that Python keeps as lone surrogates
        raise ValueError(f"The name {str(path)!r} is not valid UTF-8; rename it, or choose another one.") from None


def check_size(path: Path) -> None:
    """``ValueError`` for a file that is larger than any of a checkpoint's text files, before it is read.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if path.stat().st_size > SIZE_LIMIT:
        raise ValueError(f"{path} is larger than {SIZE_LIMIT >> 20} MB, which no checkpoint needs; don't trust it.")


def read_text(path: Path) -> str:
    """A text file; ``ValueError`` where it is too large or not UTF-8."""
    check_size(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); download it again.") from None


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a checkpoint's JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is too large, no JSON, or no object.
    """
    path = Path(path)
    check_size(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply; don't trust this checkpoint.") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{path} is not valid JSON ({error}); download it again.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object; download it again.")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """A side file's object; a missing file is an empty one."""
    return read_json(path) if path.is_file() else {}


def json_line(value: object) -> str:
    """A value as one line of JSON; what a terminal would obey if the line were shown there is escaped."""
    text = json.dumps(value, ensure_ascii=False)  # which leaves DEL and the C1 controls as they are
    return re.sub("[\x7f-\x9f]", lambda control: f"\\u{ord(control[0]):04x}", text)


def write_json(path: Path, value: dict[str, Any] | list[Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
