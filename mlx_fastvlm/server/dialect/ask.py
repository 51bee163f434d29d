"""What a request body asks of the library, and how its answer is written: the border to the rest of the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .limits import Limits

if TYPE_CHECKING:
    from ...generation.answer import GenerationResponse
    from ...processing.messages import Prompt
    from .errors import RequestError

Chunk = dict[str, Any]


@dataclass(frozen=True)
class Served:
    """What the dialect must know of the server; made once, at its start.

    Attributes:
        model: the model's name, as clients see it.
        image_size: side of the checkpoint's images, in pixels.
        token_bytes: a token's id -> its bytes (``FastVlmProcessor.token_bytes``), for log-probabilities.
        ends: ids of the tokens that end an answer, which have no text.
        aliases: other names under which clients may ask for the model.
        created: when the model was loaded, in seconds since 1970.
        max_image_size: the largest side, in pixels, that a request may have images scaled to.
        limits: what requests may ask for.
    """

    model: str
    image_size: int
    token_bytes: Callable[[int], bytes]
    ends: frozenset[int] = frozenset()
    aliases: tuple[str, ...] = ()
    created: int = 0
    max_image_size: int = 1024
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Ask:
    """A request body that was read. Nothing was opened yet: ``images.opened`` does that, in a thread that may wait.

    Attributes:
        prompt: chat messages as the library reads them.
        options: keyword options of ``GenerationOptions``; of a decision, of ``decide``.
        others: further prompts (/v1/completions), each asked like the first. The i-th answer to the p-th prompt has the
            index ``p * n + i``.
        n: answers to each prompt; see ``Engine.enqueue_n``.
        choices: of a decision, the answers to choose from.
        about: fields of the body that only the response repeats.
    """

    prompt: Prompt
    options: dict[str, Any]
    others: tuple[Prompt, ...] = ()
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    choices: list[str] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def prompts(self) -> list[Prompt]:
        return [self.prompt, *self.others]


class Writer(Protocol):
    """Writes one request's answers. Each module with a ``read`` has one, made as ``Writer(ask, served)``.

    Every response goes through :meth:`piece`, streamed or not; then either the chunks that it and the others give are
    sent, or at the end :meth:`whole`. A chunk with a ``"type"`` is an event of that name. After the last chunk of
    a stream comes ``[DONE]`` where ``done`` is true.
    """

    done: bool

    def begin(self) -> list[Chunk]:
        """The chunks before any text."""
        ...

    def piece(self, index: int, response: GenerationResponse) -> list[Chunk]:
        """The chunks of a response; ``index`` counts answers, see :attr:`Ask.others`."""
        ...

    def end(self) -> list[Chunk]:
        """The chunks after the last response."""
        ...

    def fail(self, error: RequestError) -> list[Chunk]:
        """The chunks of an error that ends a stream, instead of :meth:`end`."""
        ...

    def whole(self) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        ...
