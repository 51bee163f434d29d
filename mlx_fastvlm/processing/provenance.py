"""Text that knows who wrote each of its characters: the chat template, a user, or the model.

A template may put texts together, cut them and look at them as it likes; in what comes out only the template's own
words can be special tokens, and only those and a user's can be image marks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import NamedTuple


class Author(Enum):
    """Who wrote a text."""

    TEMPLATE = "template"
    USER = "user"
    MODEL = "model"


class Piece(NamedTuple):
    """Characters of one author. An answer that nothing was cut from is still the object that it was."""

    text: str
    author: Author


class MixedAuthors(ValueError):
    """A text of several authors was changed in a way that leaves open who wrote what."""


class Text(str):
    """A string with its pieces. One that the template wrote alone is a plain ``str``."""

    pieces: tuple[Piece, ...]

    def __new__(cls, pieces: Iterable[Piece]) -> Text:
        pieces = tuple(pieces)
        text = super().__new__(cls, "".join(piece.text for piece in pieces))
        text.pieces = pieces
        return text

    def __add__(self, other: str) -> str:
        return concatenated([self, other])

    def __radd__(self, other: str) -> str:
        return concatenated([other, self])


def written_by(author: Author, text: str) -> str:
    """A text of one author."""
    if author is Author.TEMPLATE:
        return str(text)
    # An empty answer is kept: the model may have chosen tokens that make no text.
    return Text([Piece(text, author)] if text or author is Author.MODEL else [])


def pieces_of(text: str) -> tuple[Piece, ...]:
    """A text's pieces, in order."""
    if isinstance(text, Text):
        return text.pieces
    return (Piece(text, Author.TEMPLATE),) if text else ()


def author_of(text: str) -> Author:
    """The one author of a text; ``MixedAuthors`` where there are several."""
    authors = {piece.author for piece in pieces_of(text)}
    if len(authors) > 1:
        raise MixedAuthors("it changes a text after putting what users say into it")
    return authors.pop() if authors else Author.TEMPLATE


def concatenated(texts: Iterable[str]) -> str:
    """The texts as one; neighbours of one author become one piece."""
    texts = list(texts)
    if all(type(text) is str for text in texts):  # the template's own
        return "".join(texts)
    groups: list[tuple[Author, list[str]]] = []
    for text in texts:
        for piece in pieces_of(text):
            if not groups or groups[-1][0] is not piece.author or piece.author is Author.MODEL:
                groups.append((piece.author, []))
            groups[-1][1].append(piece.text)
    # A single text stays the object that it is: an answer knows its token ids.
    pieces = [Piece(same[0] if len(same) == 1 else "".join(same), author) for author, same in groups]
    if len(pieces) == 1 and pieces[0].author is Author.TEMPLATE:
        return pieces[0].text
    return Text(pieces) if pieces else ""


def cut(text: str, start: int, stop: int) -> str:
    """``text[start:stop]`` for 0 <= start <= stop."""
    if not isinstance(text, Text):
        return text[start:stop]
    if start == 0 and stop >= len(text):
        return text
    kept = []
    for piece in text.pieces:
        length = len(piece.text)
        if stop > 0 and start < length and start < stop:
            whole = start <= 0 and stop >= length
            kept.append(piece if whole else Piece(piece.text[max(start, 0) : stop], piece.author))
        start, stop = start - length, stop - length
    return concatenated([Text([piece]) for piece in kept])


def characters_of(text: str) -> Iterator[str]:
    """A text's characters, one after the other."""
    for piece in pieces_of(text):
        for character in piece.text:
            yield written_by(piece.author, character)


def changed(text: str, change: Callable[[str], str]) -> str:
    """What a change makes of a text, which stays its author's; ``MixedAuthors`` where there are several."""
    author = author_of(text)
    return written_by(author, change(str(text)))
