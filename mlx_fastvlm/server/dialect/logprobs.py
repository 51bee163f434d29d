"""An answer's log-probabilities, each with the piece of text that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...generation.answer import GenerationResponse
    from .ask import Served

LEAST = -9999.0  # instead of minus infinity, which JSON can't hold; OpenAI's own


@dataclass(frozen=True)
class Scored:
    """A token with its log-probability.

    Attributes:
        data: its bytes, which may be part of a character.
        likeliest: tokens that might have come, likeliest first.
    """

    data: bytes
    logprob: float
    likeliest: tuple[Scored, ...] = ()

    @property
    def text(self) -> str:
        return self.data.decode(errors="replace")

    @property
    def plain(self) -> dict[str, Any]:
        """In OpenAI's shape, without the others."""
        return {"token": self.text, "logprob": self.logprob, "bytes": list(self.data)}

    @property
    def whole(self) -> dict[str, Any]:
        return {**self.plain, "top_logprobs": [other.plain for other in self.likeliest]}


class Scores:
    """Tokens wait here until the text that they begin is shown: what a stop string cuts off never is."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._waiting: list[tuple[int, Scored]] = []
        self._read = self._shown = 0  # bytes of tokens, and of text

    def add(self, response: GenerationResponse) -> list[Scored]:
        """The tokens whose text begins in what has been shown with this response."""
        if response.logprob is None:
            return []
        ended = response.token in self._served.ends
        if not ended:
            scored = self._scored(response.token, response.logprob)
            others = tuple(self._scored(other.token, other.logprob) for other in response.top_logprobs or ())
            self._waiting.append((self._read, Scored(scored.data, scored.logprob, others)))
            self._read += len(scored.data)
        self._shown += len(response.text.encode(errors="replace"))
        everything = ended or response.finish_reason == "length"
        shown = [scored for start, scored in self._waiting if everything or start < self._shown]
        self._waiting = self._waiting[len(shown) :]
        return shown

    def _scored(self, token: int, logprob: float) -> Scored:
        return Scored(self._served.token_bytes(token), max(logprob, LEAST))
