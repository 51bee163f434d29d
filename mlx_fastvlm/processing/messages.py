"""Messages: a prompt in any form, its images anywhere -> messages with bare marks, and the images in reading order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .marks import IMAGE_MARK, PlainText

if TYPE_CHECKING:
    from .images import ImageSource
    from .prepared import Image

Messages = list[dict[str, Any]]
Prompt = str | Messages
_NO_SOURCE = object()  # of a mark: its image comes from the list beside the prompt


def read_prompt(
    prompt: Prompt,
    image: ImageSource | list[ImageSource] | None,
    load: Callable[[ImageSource], list[Image]],
    system: str | None = None,
) -> tuple[Messages, list[Image]]:
    """Bring a prompt and its images into one form.

    Args:
        prompt: a question, or messages whose contents are strings with ``<image>`` marks, or lists of parts. A part
            ``{"type": "image"}`` is a mark; with a source in it (``"image"``, ``"url"``, ``"path"`` or ``"base64"``),
            or as ``{"type": "image_url", "image_url": {"url": ...}}``, it brings its own image.
        image: the images of the marks, in order. Where there is no mark for them, they go before the first question.
        load: makes the images of a source: one, or several frames of an animation.
        system: a system prompt for messages without one.

    Raises:
        ValueError, OSError: for malformed messages, marks and images that do not match, or a bad image.
    """
    beside = [] if image is None else list(image) if isinstance(image, (list, tuple)) else [image]
    messages = _with_marks(prompt, len(beside), system)
    sources = [source for message in messages for source in _sources(message["content"])]
    check_marks(sum(source is _NO_SOURCE for source in sources), len(beside))
    rest = iter(beside)
    loaded = [load(next(rest) if source is _NO_SOURCE else source) for source in sources]
    counts = iter([len(images) for images in loaded])
    messages = [{**message, "content": _spread(message["content"], counts)} for message in messages]
    return messages, [image for images in loaded for image in images]


def with_video(prompt: Prompt, frames: list[tuple[float, Image]]) -> Messages:
    """The prompt as messages, with the frames of a video, each behind its time, before the first question."""
    messages = user_message(prompt, 0) if isinstance(prompt, str) else prompt
    parts: list[dict[str, Any]] = []
    for time, frame in frames:
        parts += [{"type": "text", "text": f"{time:.1f} s:"}, {"type": "image", "image": frame}]
    for i, message in enumerate(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            rest = content if isinstance(content, list) else [{"type": "text", "text": content}]
            return [*messages[:i], {**message, "content": [*parts, *rest]}, *messages[i + 1 :]]
    raise ValueError("A video goes before a question; give a message of the user.")


def _with_marks(prompt: Prompt, images: int, system: str | None) -> Messages:
    """The prompt as messages, with marks for the images beside it."""
    if isinstance(prompt, str):
        return user_message(prompt, images, system)
    if not isinstance(prompt, list):
        raise ValueError(f"A prompt is a text or a list of messages, got {type(prompt).__name__}.")
    if not prompt:
        raise ValueError("There are no messages; give at least one.")
    for message in prompt:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError('A message must be a dict with "role" and "content".')
    messages = [dict(message) for message in prompt]
    if system is not None:
        if messages[0]["role"] == "system":
            raise ValueError("The messages begin with a system prompt already; leave out the option system.")
        messages.insert(0, {"role": "system", "content": system})
    marked = any(source is _NO_SOURCE for message in messages for source in _sources(message["content"]))
    first = next((message for message in messages if message["role"] == "user"), None)
    if images and first is not None and not marked:
        content = first["content"]
        if isinstance(content, str):
            first["content"] = f"{IMAGE_MARK}\n" * images + content
        elif isinstance(content, list):
            first["content"] = [{"type": "image"}] * images + content
    return messages


def _sources(content: Any) -> list[Any]:
    """For each image of a message's content, in reading order, what it brings, or ``_NO_SOURCE``."""
    if isinstance(content, PlainText):
        return []
    if isinstance(content, str):
        return [_NO_SOURCE] * content.count(IMAGE_MARK)
    if not isinstance(content, list):
        return []  # the processor says what is wrong with it
    sources = []
    for part in content:
        if is_image(part):
            sources.append(_source(part))
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            sources += _sources(part["text"])
    return sources


def _source(part: dict[str, Any]) -> Any:
    if part["type"] == "image":
        return next((part[key] for key in ("image", "url", "path", "base64") if part.get(key) is not None), _NO_SOURCE)
    url = part.get("image_url")
    url = url.get("url") if isinstance(url, dict) else url
    if not isinstance(url, str):
        raise ValueError('An image_url part must be {"type": "image_url", "image_url": {"url": "..."}}.')
    return url


def _spread(content: Any, counts: Iterator[int]) -> Any:
    """The content with each mark as often as its source has images, and no sources."""
    if isinstance(content, PlainText):
        return content
    if isinstance(content, str):
        first, *others = content.split(IMAGE_MARK)
        return first + "".join("\n".join([IMAGE_MARK] * next(counts)) + text for text in others)
    if not isinstance(content, list):
        return content
    parts = []
    for part in content:
        if is_image(part):
            parts += [{"type": "image"}] * next(counts)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            parts.append({**part, "text": _spread(part["text"], counts)})
        else:
            parts.append(part)
    return parts


def check_marks(marks: int, images: int) -> None:
    """``ValueError`` unless there are as many ``<image>`` marks as images."""
    if marks != images:
        raise ValueError(
            f"The prompt has {marks} {IMAGE_MARK} mark{'s' * (marks != 1)} for {images} "
            f"image{'s' * (images != 1)}; give one mark for each image."
        )


def user_message(text: str, images: int, system: str | None = None) -> Messages:
    """One question as messages: its images first, as in Apple's predict.py, unless it places them itself."""
    if IMAGE_MARK not in text:
        text = f"{IMAGE_MARK}\n" * images + text
    messages = [{"role": "user", "content": text}]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def content_parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A message's content as parts: images and texts.

    Marks at the beginning of a string become image parts; the template puts its own newline after them.
    """
    if isinstance(content, PlainText):
        return [{"type": "text", "text": content}]
    if isinstance(content, str):
        parts, line = [], True
        while content.startswith(IMAGE_MARK):
            parts.append({"type": "image"})
            content = content.removeprefix(IMAGE_MARK)
            line = content.startswith("\n")  # an empty question has one after its images, as in Apple's predict.py
            content = content.removeprefix("\n")
        return [*parts, {"type": "text", "text": content}] if content or line else parts
    if not isinstance(content, list):
        raise ValueError(f"A message's content must be a string or a list of parts, got {type(content).__name__}.")
    for part in content:
        is_text = isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        if not (is_text or is_image(part)):
            raise ValueError('A part of a message must be {"type": "text", "text": "..."} or {"type": "image"}.')
    return content


def is_image(part: Any) -> bool:
    """Whether a part of a message is an image, in transformers' way or OpenAI's."""
    return isinstance(part, dict) and part.get("type") in ("image", "image_url")
