"""Which words of a command line, or of a chat, are images: what people drag, paste and let the shell expand."""

from __future__ import annotations

import argparse
import glob
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif")
_ADDRESSES = ("http://", "https://", "data:image/", "file://")


def is_source(word: str) -> bool:
    """Whether a word is an image rather than a part of a question: an address, a file, or what is named like one."""
    named = word.lower().endswith(_SUFFIXES)
    if (named or is_address(word)) and not any(character.isspace() for character in word):
        return True
    return (named or word.startswith(("/", "~", "./", "../"))) and is_file(word)


def is_address(word: str) -> bool:
    return word.lower().startswith(_ADDRESSES)


def is_file(word: str) -> bool:
    try:
        return Path(word).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):  # a name too long, a user that is none, a zero byte
        return False


def expanded(word: str) -> list[str]:
    """The files that a pattern matches, which a shell did not expand; any other word as it is.

    Raises:
        FileNotFoundError: none does.
    """
    if is_address(word) or not glob.has_magic(word) or is_file(word):
        return [word]
    found = sorted(glob.glob(os.path.expanduser(word)))
    if not found:
        raise FileNotFoundError(f"{word}: no file matches.")
    return found


def dragged(line: str) -> tuple[list[str], str]:
    """The images that a line begins with, as a terminal pastes what is dragged into it, and what follows them.

    Terminals put a backslash before blanks, or quotes around a path. A line of one path with blanks in it counts too.
    """
    if is_source(line) and is_file(line):
        return [line], ""
    rest, images = line, []
    while rest:
        word, after = _first_word(rest)
        if not (is_source(word) and (is_file(word) or is_address(word))):
            break
        images.append(word)
        rest = after
    return images, rest


def _first_word(text: str) -> tuple[str, str]:
    """The first word as a shell reads it, without its quotes and backslashes, and what follows."""
    words = shlex.shlex(text, posix=True)
    words.whitespace_split, words.commenters = True, ""
    try:
        word = words.get_token()
    except ValueError:  # a quote without its end, as in "It's"
        return "", text
    return word or "", words.instream.read().strip()  # type: ignore[call-arg]  # its stub asks for a size


class Images(argparse.Action):
    """``--image a.png b.png "What is this?"``: the first word is an image, the others where they look like one.

    The rest are ``spilled``: words of the question.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        first, *others = values
        images = [first, *(word for word in others if is_source(word) or ("*" in word and " " not in word))]
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), *images])
        namespace.spilled = [*getattr(namespace, "spilled", []), *(word for word in others if word not in images)]


def sort_words(parser: argparse.ArgumentParser, arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Put bare words where they belong: images to ``image``, the question to ``prompt``."""
    images = [word for word in words if is_source(word)]
    texts = [*(word for word in words if not is_source(word)), *getattr(arguments, "spilled", [])]
    if texts and arguments.prompt is not None:
        parser.error(f"the question is given twice, as {texts[0]!r} and as --prompt; give one")
    if texts:
        arguments.prompt = " ".join(texts)
    arguments.image = [*images, *(arguments.image or [])]
