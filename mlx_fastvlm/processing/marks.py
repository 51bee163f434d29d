"""What the text of a message holds besides words: marks for images, and an answer's token ids."""

from __future__ import annotations

from collections.abc import Iterable

IMAGE_MARK = "<image>"


class PlainText(str):
    """A text without marks: ``<image>`` in it is a word like any other."""


class AnswerText(PlainText):
    """An answer in a conversation that knows the token ids which the model chose for it.

    Encoding its text again may give others, and then nothing computed for these would be of use. A model that says
    ``<image>`` shows no image.
    """

    ids: tuple[int, ...]

    def __new__(cls, text: str, ids: Iterable[int]) -> AnswerText:
        answer = super().__new__(cls, text)
        answer.ids = tuple(ids)
        return answer

    def __reduce__(self) -> tuple[type, tuple[str, tuple[int, ...]]]:
        """For copies and pickles, which make the object anew."""
        return type(self), (str(self), self.ids)
