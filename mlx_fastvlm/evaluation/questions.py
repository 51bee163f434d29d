"""A file of questions about images with the answers that are right: JSON lines, or parquet as the hub has it."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.items import SAMPLE_LIMIT, Item, is_url
from ..data.parquet import ROWS, pyarrow_parquet, row_item
from ..errors import UsageError, one_line, short
from .metrics import Metric, choice

Row = dict[str, Any]
KEYS = ("key", "question_id", "questionId")
IMAGES = ("image", "images")
NO_GROUP = "none"  # where a row has no such field
LETTERS = string.ascii_uppercase


@dataclass
class Question:
    """What is asked, and what would be right.

    Attributes:
        key: its own among all questions of the file.
        prompt: as the model gets it.
        answers: as the metric takes them.
        group: its value of the field that scores are shown by.
        error: why it can't be asked; the rest is empty then.
    """

    key: str
    prompt: str = ""
    answers: list[str] = field(default_factory=list)
    group: str = ""
    error: str | None = None


class Questions:
    """The questions of a file, in order; images are read when the items are asked for.

    A row has an image as ``image``, or several as ``images``: paths, below the file's folder if they are relative,
    URLs, ``data:`` URIs, or in parquet what the hub stores. It has a ``question``, after which its choices and
    ``post_prompt`` go, or a ``prompt``, which is asked as it stands; ``answer`` or ``answers``, texts or VQA's objects
    with an ``answer``; and for the metric choice ``choices`` or ``options``, with an answer that is a letter, a choice,
    or its number, from 0. Its name is ``key``, ``question_id`` or ``questionId``, otherwise its place in the file.

    Args:
        by: a field whose values are groups with scores of their own.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: it is of another kind, no row has the field ``by``, or two rows have one name.
        ValueError: it can't be read to its end, or has no row.
    """

    duplicates = 0
    first_duplicate: str | None = None

    def __init__(self, path: Path, metric: Metric, post_prompt: str, by: str | None = None) -> None:
        if path.suffix.lower() not in READERS:
            raise UsageError(
                f"{one_line(str(path))} is not a file of questions; give one that ends with .jsonl or .parquet."
            )
        if not path.is_file():
            raise FileNotFoundError(f"{one_line(str(path))}: no such file; check the path.")
        self._path, self._metric, self._post_prompt, self._by = path, metric, post_prompt, by
        self.all: list[Question] = []
        known: set[str] = set()
        grouped = False
        for place, row in self._rows(images=False):
            question = self._question(place, row)
            if question.key in known:
                raise UsageError(f"{place} has the key {short(question.key)} of an earlier row; make them differ.")
            known.add(question.key)
            self.all.append(question)
            grouped = grouped or (isinstance(row, dict) and row.get(by or "") is not None)
        if not self.all:
            raise ValueError(f"{one_line(str(path))} has no question; give it a row for each.")
        if by is not None and not grouped:
            raise UsageError(f"No row of {path.name} has a field {short(by)}; leave out --by, or name another.")

    def __iter__(self) -> Iterator[Item]:
        for question, (_, row) in zip(self.all, self._rows(images=True)):
            if question.error is not None or isinstance(row, str):
                yield Item(question.key, error=question.error)
            else:
                yield self._item(question, row)

    def estimate(self) -> int:
        return len(self.all)

    def _rows(self, images: bool) -> Iterator[tuple[str, Row | str]]:
        """Rows with their places for errors; a row that can't be read is the sentence that says so."""
        return READERS[self._path.suffix.lower()](self._path, images)

    def _question(self, place: str, row: Row | str) -> Question:
        if isinstance(row, str):
            return Question(place, group=NO_GROUP, error=row)
        group = str(row.get(self._by or "", NO_GROUP))
        key = str(next((row[name] for name in KEYS if row.get(name) is not None), place))
        try:
            prompt = self._prompt(row)
            answers = self._answers(row)
        except ValueError as error:
            return Question(key, group=group, error=f"{place} {error}")
        return Question(key, prompt, answers, group)

    def _prompt(self, row: Row) -> str:
        for name in ("prompt", "question"):
            text = row.get(name)
            if isinstance(text, str) and text.strip():
                break
        else:
            raise ValueError("asks nothing; give it a text as question, or as prompt.")
        if name == "prompt":
            return text
        if self._metric.score is choice:
            text = "\n".join([text, *(f"{letter}. {one}" for letter, one in zip(LETTERS, _choices(row)))])
        return text + self._post_prompt

    def _answers(self, row: Row) -> list[str]:
        given = row.get("answers", row.get("answer"))
        given = given if isinstance(given, list) else [given]
        given = [one.get("answer") if isinstance(one, dict) else one for one in given]
        if not given or not all(isinstance(one, (str, int, float)) for one in given):
            raise ValueError("has no answer; give it a text as answer, or a list of them as answers.")
        if self._metric.score is choice:
            return _right_choice(given, _choices(row))
        if len(given) < self._metric.least_answers:
            raise ValueError(
                f"has {len(given)} answers, and this metric needs those of {self._metric.least_answers} annotators or "
                "more; take --metric exact."
            )
        return [str(one) for one in given]

    def _item(self, question: Question, row: Row) -> Item:
        values = next((row[name] for name in IMAGES if row.get(name) is not None), None)
        values = values if isinstance(values, list) else [values]
        if not values or None in values:
            return Item(question.key, error="The row has no image; give it one as image, or several as images.")
        first, *more = (self._image(question.key, value) for value in values)
        first.prompt, first.more = question.prompt, more
        return first

    def _image(self, key: str, value: Any) -> Item:
        if isinstance(value, str) and value.startswith("data:"):
            return Item(key, value)
        if self._path.suffix.lower() == ".parquet":
            return row_item({"image": value}, key, "image", self._path.parent)
        if not isinstance(value, str) or not value or "\0" in value:
            return Item(key, error=f"An image is a path, a URL or a data: URI, got {short(value)}.")
        return Item(key, value if is_url(value) else self._path.parent / value)


def _choices(row: Row) -> list[str]:
    found = row.get("choices", row.get("options", []))
    if not isinstance(found, list) or not all(isinstance(one, (str, int, float)) for one in found):
        raise ValueError("has choices that are not a list of texts; correct them.")
    if len(found) > len(LETTERS):
        raise ValueError(f"has {len(found)} choices, and there are {len(LETTERS)} letters; give fewer.")
    return [str(one) for one in found]


def _right_choice(given: list[Any], choices: list[str]) -> list[str]:
    """The right letter and its text, from a letter, a text or a number from 0."""
    if len(given) != 1:
        raise ValueError(f"has {len(given)} right choices; give it one.")
    answer = given[0]
    if not choices:
        if isinstance(answer, str) and len(answer) == 1 and answer.upper() in LETTERS:
            return [answer.upper()]
        raise ValueError("has no choices, so its answer must be a letter; give it choices.")
    if isinstance(answer, str):
        text = answer.strip()
        meant = {i for i, one in enumerate(choices) if one == text}
        meant |= {i for i in range(len(choices)) if text.upper() == LETTERS[i] or text == str(i)}
    else:
        meant = {i for i in range(len(choices)) if i == answer}
    if len(meant) != 1:
        several = "could be several of its choices" if meant else "is none of its choices"
        raise ValueError(f"has the answer {short(answer)}, which {several}; give the letter.")
    (index,) = meant
    return [LETTERS[index], choices[index]]


def _json_lines(path: Path, images: bool) -> Iterator[tuple[str, Row | str]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(SAMPLE_LIMIT + 1):
            number += 1
            place = f"{path.name}:{number}"
            if len(line) > SAMPLE_LIMIT:
                raise ValueError(f"{place} has more than {SAMPLE_LIMIT >> 20} MB; give images as paths.")
            if line.strip():
                yield place, _parsed(line, place)


def _parsed(line: bytes, place: str) -> Row | str:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        row = None
    return row if isinstance(row, dict) else f"{place} is not a JSON object; correct the line."


def _parquet(path: Path, images: bool) -> Iterator[tuple[str, Row | str]]:
    parquet = pyarrow_parquet()
    number = 0
    try:
        with parquet.ParquetFile(path, memory_map=False) as file:
            columns = [name for name in file.schema_arrow.names if images or name not in IMAGES]
            for batch in file.iter_batches(batch_size=ROWS, columns=columns):
                for row in batch.to_pylist():
                    yield f"{path.name}:{number}", {name: value for name, value in row.items() if value is not None}
                    number += 1
    except Exception as error:  # whatever Arrow's readers raise for a damaged file
        said = one_line(" ".join(str(error).split())) or type(error).__name__
        raise ValueError(f"{path.name} can't be read past row {number} ({said}); get it again.") from None


READERS = {".jsonl": _json_lines, ".parquet": _parquet}
