"""Messages of a request -> chat messages as the library reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from ...generation.options import GenerationOptions
from ...processing.marks import IMAGE_MARK, PlainText
from .errors import RequestError
from .fields import brief
from .images import DETAILS, Images
from .shapes import TEXT, Schema, a_list, an_object, either, one_of, or_null

if TYPE_CHECKING:
    from .ask import Served
    from .fields import Fields
    from .images import Source

Part = dict[str, Any]

# Fields of a message that nothing here can act on.
_OF_TOOLS = ("tool_calls", "function_call", "tool_call_id")
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
ADDRESS = either(TEXT.schema, an_object("url", url=TEXT.schema, detail=or_null(one_of(*DETAILS))))


def messages_schema(*parts: Schema) -> Schema:
    """Of a list of messages that may have these parts."""
    content = or_null(either(TEXT.schema, a_list(either(*parts))))
    return a_list(an_object("role", role=one_of(*_ROLES), content=content), 1)


def part_schema(kind: str, **properties: Schema) -> Schema:
    """Of a part of a message of this ``type``, all of whose properties it needs."""
    return an_object("type", *properties, type=one_of(kind), **properties)


class Conversation:
    """Messages as they are read, and what they bring.

    Attributes:
        messages: as the library reads them, images as :class:`Source`.
        video: of the first message of the user.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self.messages: list[dict[str, Any]] = []
        self.images = Images(served)
        self.video: Source | None = None

    def say(self, role: str, content: str | list[Part]) -> None:
        self.messages.append({"role": role, "content": plain(content) if isinstance(content, str) else content})

    def read(self, body: Fields, name: str, parts: Callable[[Conversation, Fields, str], Iterator[Part]]) -> None:
        """Read a list of messages.

        Args:
            parts: (this, a part, the message's role) -> what the part brings.
        """
        for message in body.objects(name):
            self._read_message(message, parts)

    def _read_message(self, message: Fields, parts: Callable[[Conversation, Fields, str], Iterator[Part]]) -> None:
        given = message.needed("role", message.text("role"))
        if given in ("tool", "function"):
            message.refuse("role", f"Messages of the role {given} are not served here: the model calls no tools.")
        role = _ROLES.get(given)
        if role is None:
            message.refuse(
                "role", f"{message.where}role must be system, developer, user or assistant, got {brief(given)}."
            )
        for field in _OF_TOOLS:
            if message.get(field):
                message.refuse(field, f"{message.where}{field} is not served here: the model calls no tools.")
        for field in ("name", "audio", "refusal", "images"):
            if message.get(field):
                message.refuse(field, f"{message.where}{field} is not served here; put it into the content.")
        content = message.get("content")
        if isinstance(content, list):
            found = [part for part_ in message.objects("content") for part in parts(self, part_, role)]
            self.say(role, found)
        elif content is None and role == "assistant":
            self.say(role, "")
        else:
            self.say(role, message.needed("content", message.text("content")))

    def text(self, part: Fields) -> Part:
        """A part that is text."""
        return said(part.needed("text", part.text("text")))

    def image(self, url: Fields, name: str, role: str) -> Part:
        """A part that is an image; ``url`` has its address under ``name``, and its detail."""
        if role != "user":
            url.refuse(name, f"Images belong in messages of the user, and {url.where}{name} is in one of {role}.")
        address = url.needed(name, url.text(name))
        return {"type": "image", "image": self.images.image(address, url.where + name, url.one_of("detail", *DETAILS))}

    def take_video(self, url: Fields, name: str, role: str) -> None:
        """A part that is a video: an option of the library, which puts the frames before the first question."""
        address = url.needed(name, url.text(name))
        if role != "user" or any(message["role"] == "user" for message in self.messages):
            url.refuse(name, f"A video belongs in the first user message; move {url.where}{name} there.")
        if self.video is not None:
            url.refuse(name, "A request can have one video; send one.")
        self.video = self.images.video(address, url.where + name)

    def options(self, body: Fields) -> dict[str, Any]:
        """The library's options about images and videos: those that the body names, and what the parts ask for."""
        size = body.whole("image_size", 1, self._served.max_image_size)
        most = self._served.limits.max_images
        frames, max_frames = body.whole("frames", 1, most), body.whole("max_frames", 1, most)
        images = self.images.count * (frames or 1)
        if self.video is not None:
            images += max_frames or GenerationOptions.max_frames
        self.images.check_count(images, "frames" if frames else "max_frames")
        options = {
            "image_size": self.images.image_size if size is None else size,
            "frames": frames,
            "fps": body.number("fps"),
            "max_frames": max_frames,
            "video": self.video,
        }
        return {name: value for name, value in options.items() if value is not None}


def plain(text: str) -> str:
    """A client's text, in which ``<image>`` is a word like any other: its images are parts."""
    return PlainText(text) if IMAGE_MARK in text else text


def said(text: str) -> Part:
    return {"type": "text", "text": plain(text)}


def user_says(text: str) -> list[dict[str, Any]]:
    """One question as messages."""
    return [{"role": "user", "content": plain(text)}]


def refuse_part(part: Fields, *known: str) -> NoReturn:
    """For a part of a message that is of no kind that this server reads."""
    kind = part.needed("type", part.text("type"))
    raise RequestError(
        f"{part.where}type must be {', '.join(known)}, got {brief(kind)}; nothing else is served here.",
        f"{part.where}type",
    )
