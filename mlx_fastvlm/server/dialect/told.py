"""The answers of one request so far."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .logprobs import Scored, Scores

if TYPE_CHECKING:
    from ...generation.answer import GenerationResponse
    from .ask import Ask, Served


@dataclass
class Told:
    """One answer.

    Attributes:
        prompt_tokens, cached_tokens, tokens: of the prompt, how many of them were known, and of the answer.
    """

    scores: Scores
    texts: list[str] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, response: GenerationResponse) -> list[Scored]:
        """Take a response; returns the scored tokens that belong to its text."""
        scored = self.scores.add(response)
        self.texts.append(response.text)
        self.scored += scored
        self.finish_reason = response.finish_reason
        self.prompt_tokens, self.cached_tokens = response.prompt_tokens, response.cached_tokens
        self.tokens = response.generation_tokens
        return scored


class Answers:
    """All answers of a request, and what every body about them begins with."""

    def __init__(self, ask: Ask, served: Served, prefix: str) -> None:
        self._n = ask.n
        self.all = [Told(Scores(served)) for _ in range(ask.n * len(ask.prompts))]
        self.id = new_id(prefix)
        self.created = int(time.time())
        self.model = served.model

    def usage(self) -> dict[str, Any]:
        """In the shape of chat and completions. A prompt counts once, however many answers it has."""
        prompts = [self.all[i : i + self._n] for i in range(0, len(self.all), self._n)]
        prompt = sum(answers[0].prompt_tokens for answers in prompts)
        cached = sum(min(answer.cached_tokens for answer in answers) for answers in prompts)
        completion = sum(answer.tokens for answer in self.all)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"
