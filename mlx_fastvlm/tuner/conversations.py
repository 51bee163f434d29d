"""Rows of training data, in any of the forms that people have -> conversations, checked.

A form is recognised by a row's keys: ``messages`` (and ``images``), LLaVA's ``conversations``, ``question`` and
``answer`` (or mlx-lm's ``prompt`` and ``completion``), ``caption`` (or an image folder's ``text``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import short
from ..processing.marks import AnswerText
from ..processing.messages import Messages, is_image, read_prompt
from .rows import ImageSource, check_image, image_source, split_rows

CAPTION_PROMPT = "Describe the image."
LLAVA_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Conversation:
    """A row of training data.

    Attributes:
        messages: with a mark for each image; what the assistant answers is text, and holds none.
        images: files, ``data:`` URIs or tables' images, in reading order.
        place: file and row, for errors.
    """

    messages: Messages
    images: tuple[ImageSource, ...]
    place: str


def read_conversations(data: str | Path, split: str, image_folder: str | Path | None = None) -> list[Conversation]:
    """A split of a data set, every row checked, and every image up to its first bytes.

    Args:
        data: a folder of ``{train,valid,test}.jsonl`` (or ``.json``, ``.csv``, ``.parquet``), or a file, which is
            "train"; a folder that Hugging Face's ``datasets`` saved, or the name of a data set on their hub.
        split: "train", "valid" or "test"; none is an empty list.
        image_folder: where relative paths of images begin; by default in the data's folder.

    Raises:
        FileNotFoundError, ValueError: for the first row with something wrong, in a sentence that begins with its place.
    """
    rows, folder = split_rows(data, split)
    if image_folder is not None:
        folder = Path(image_folder).expanduser()
    if rows is None:
        return []
    conversations = [conversation(row, place, folder) for place, row in rows]
    if not conversations:
        raise ValueError(f"The {split} set in {data} has no rows; write one for each conversation.")
    checked: set[ImageSource] = set()
    for found in conversations:
        for source in found.images:
            if source not in checked:
                check_image(source, found.place)
                checked.add(source)
    return conversations


def conversation(row: dict[str, Any], place: str, folder: Path) -> Conversation:
    """A row as a conversation; ``place`` begins its errors, relative paths of images lie in ``folder``."""
    for keys, read in FORMS:
        if all(row.get(key) is not None for key in keys):
            messages = read(row, place)
            break
    else:
        forms = "; ".join(" and ".join(keys) for keys, _ in FORMS)
        raise ValueError(f"{place} has the keys {short(sorted(row))} and none of the forms: {forms}.")
    _check_turns(messages, place)
    try:
        marked, sources = read_prompt(messages, _images_beside(row, place), lambda source: [source])
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    return Conversation(marked, tuple(image_source(source, folder, place) for source in sources), place)


def _from_messages(row: dict[str, Any], place: str) -> Messages:
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{place}: messages must be a list of messages, got {short(messages)}.")
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f'{place}: a message must be an object with "role" and "content", got {short(message)}.')
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _from_llava(row: dict[str, Any], place: str) -> Messages:
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{place}: conversations must be a list of turns, got {short(turns)}.")
    messages = []
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise ValueError(f'{place}: a turn must be an object with "from" and "value", got {short(turn)}.')
        role = turn.get("from")
        if not isinstance(role, str) or role not in LLAVA_ROLES:
            raise ValueError(f'{place}: a turn is "from" human or gpt, got {short(role)}.')
        messages.append({"role": LLAVA_ROLES[role], "content": turn["value"]})
    return messages


def _asked(question: str, answer: str) -> Callable[[dict[str, Any], str], Messages]:
    """Reads rows of one question, under such a key, and its answer."""

    def read(row: dict[str, Any], place: str) -> Messages:
        for key in (question, answer):
            if not isinstance(row[key], str):
                raise ValueError(f"{place}: {key} must be a text, got {short(row[key])}.")
        return _pair(row[question], row[answer])

    return read


def _captioned(key: str) -> Callable[[dict[str, Any], str], Messages]:
    """Reads rows of an image and a text about it, under such a key."""

    def read(row: dict[str, Any], place: str) -> Messages:
        if not isinstance(row[key], str):
            raise ValueError(f"{place}: {key} must be a text, got {short(row[key])}.")
        if not _images_beside(row, place):
            raise ValueError(f"{place} has a {key} and no image; name it under image.")
        return _pair(row.get("prompt") or CAPTION_PROMPT, row[key])

    return read


def _pair(question: str, answer: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


FORMS: tuple[tuple[tuple[str, ...], Callable[[dict[str, Any], str], Messages]], ...] = (
    (("messages",), _from_messages),
    (("conversations",), _from_llava),
    (("question", "answer"), _asked("question", "answer")),
    (("prompt", "completion"), _asked("prompt", "completion")),
    (("caption",), _captioned("caption")),
    (("text",), _captioned("text")),
)


def _images_beside(row: dict[str, Any], place: str) -> list[Any]:
    """What a row names as images beside its messages: one or a list, under any of the usual keys."""
    given = [key for key in ("images", "image", "file_name", "filename") if row.get(key) not in (None, "", [])]
    if len(given) > 1:
        raise ValueError(f"{place} has both {given[0]} and {given[1]}; leave one.")
    if not given:
        return []
    value = row[given[0]]
    return value if isinstance(value, list) else [value]


def _check_turns(messages: Messages, place: str) -> None:
    """``ValueError`` unless user and assistant take turns, the assistant has the last word, and says something.

    The answers become :class:`AnswerText`, in which nothing is a mark; their ids are still to come.
    """
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    for message in messages:
        if message["role"] not in ROLES:
            raise ValueError(f"{place}: a role is one of {', '.join(ROLES)}, got {short(message['role'])}.")
    for number, message in enumerate(turns, 1):
        expected = "user" if number % 2 else "assistant"
        if message["role"] != expected:
            raise ValueError(f"{place}: turn {number} is the {message['role']}'s; user and assistant must take turns.")
        if expected == "assistant":
            message["content"] = _answer(message["content"], f"{place}, turn {number}")
    if not turns or len(turns) % 2:
        raise ValueError(f"{place} has no answer at its end; nothing is learnt from a question alone.")


def _answer(content: Any, place: str) -> AnswerText:
    if isinstance(content, list):
        if any(is_image(part) for part in content):
            raise ValueError(f"{place} is an answer with an image, which FastVLM can't give.")
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = "".join(map(str, texts)) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(content, str):
        raise ValueError(f"{place} is an answer without text.")
    if not content.strip():
        raise ValueError(f"{place} is an empty answer, from which nothing is learnt; fill or remove it.")
    return AnswerText(content, ())
