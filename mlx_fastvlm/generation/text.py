"""Tokens -> an answer's text, in whole characters, up to the end that the model or a stop string sets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..processing.processor import FastVlmProcessor


class TextStream:
    """The text of one answer, as its tokens come.

    Attributes:
        ended: whether the model ended the answer, or a stop string did.
    """

    def __init__(self, processor: FastVlmProcessor, stop: Iterable[str] = ()) -> None:
        self._ends = processor.eos_token_ids
        self._characters = processor.detokenizer()
        self._stop = StopStrings(stop)
        self._over = False

    @property
    def ended(self) -> bool:
        return self._over or self._stop.found

    def add(self, token: int) -> str:
        """The text that a token adds; "" while a character is incomplete or a stop string may be beginning."""
        if token in self._ends:
            self._over = True
            return ""
        return self._stop.add(self._characters.add(token))

    def finish(self) -> str:
        """What is still held back, once no token comes any more."""
        if self._stop.found:
            return ""
        return self._stop.add(self._characters.finish()) + self._stop.finish()


class StopStrings:
    """Cuts a text off where the first of some strings ends; the string itself is cut off too.

    What may be the beginning of one is held back until that is known. The cut does not depend on the pieces that the
    text comes in.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """The part of the text so far that can be shown now."""
        text = self._held + text
        places = ((text.find(string), string) for string in self._strings)
        ends = [(start + len(string), start) for start, string in places if start >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        lengths = ((string, range(1, min(len(string), len(text) + 1))) for string in self._strings)
        beginnings = (n for string, possible in lengths for n in possible if text.endswith(string[:n]))
        shown = len(text) - max(beginnings, default=0)
        self._held = text[shown:]
        return text[:shown]

    def finish(self) -> str:
        """What is held back though nothing follows."""
        held, self._held = self._held, ""
        return held
