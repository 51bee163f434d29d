"""What an engine gives for a prompt: an answer, response by response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Alternative:
    """A token that might have come.

    Attributes:
        token: its id.
        text: it alone, decoded; a part of a character shows as a replacement character.
        logprob: its log-probability, a natural logarithm.
    """

    token: int
    text: str
    logprob: float


@dataclass
class GenerationResponse:
    """One step of an answer.

    Attributes:
        text: what this step adds to the answer; often a token's text, sometimes "" while a character is incomplete or
            a stop string may be beginning.
        token: the token's id.
        finish_reason: None until the last step; then "stop" (the model or a stop string ended the answer) or "length"
            (max_tokens).
        prompt_tokens: tokens of the prompt, those of the images included.
        cached_tokens: how many of them the prompt cache held already.
        prompt_tps: prompt tokens a second, prefill alone, without the cached ones.
        generation_tokens: tokens of the answer so far.
        generation_tps: tokens a second after the first.
        time_to_first_token: seconds from the call to the first token: images, vision tower and prefill.
        peak_memory: the most memory that MLX has used, in GB.
        logprob: the token's log-probability (natural logarithm), with the option ``logprobs``; None without.
        top_logprobs: the likeliest tokens, likeliest first, with the option ``top_logprobs``; None without.
    """

    text: str
    token: int
    finish_reason: str | None
    prompt_tokens: int
    cached_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    time_to_first_token: float
    peak_memory: float
    logprob: float | None = None
    top_logprobs: list[Alternative] | None = None


@dataclass(frozen=True)
class Usage:
    """What an answer has cost so far.

    Attributes:
        prompt_tokens: of the prompt, those of the images included.
        cached_tokens: how many of them were not computed again.
        generation_tokens: of the answer.
    """

    prompt_tokens: int
    cached_tokens: int
    generation_tokens: int


class Driver(Protocol):
    """What an answer needs of its engine."""

    def step(self) -> bool: ...

    def cancel(self, answer: Answer) -> None: ...


class Answer:
    """An answer in the making. Iterating gives its responses, and runs the engine while the next is not there yet.

    Attributes:
        error: what ended it before its time, which iterating raises too; None otherwise.
        finish_reason: as its last response has it; None before, and after :meth:`close`.
        usage: see :class:`Usage`.
    """

    def __init__(self, engine: Driver, prompt_tokens: int) -> None:
        self._engine: Driver | None = engine
        # Everything that was ever delivered. One append is all that makes a response a part of the answer, so that an
        # interrupt finds it either there or not. What was read is replaced by None.
        self._responses: list[GenerationResponse | None] = []
        self._read = 0
        self.error: BaseException | None = None
        self.finish_reason: str | None = None
        self.usage = Usage(prompt_tokens, 0, 0)

    def __iter__(self) -> Answer:
        return self

    def __next__(self) -> GenerationResponse:
        while self._read == len(self._responses):
            if self.error is not None:
                raise self.error
            if self._engine is None or not self._engine.step():
                raise StopIteration
        return self._take()

    def close(self) -> None:
        """Stop here; what is not read yet is dropped. Closing an answer that has ended does nothing."""
        if self._engine is not None:
            self._engine.cancel(self)
        self._responses = self._responses[: self._read]

    @property
    def ended(self) -> bool:
        """Whether no response will be added any more."""
        return self._engine is None

    @property
    def delivered(self) -> int:
        """How many responses there have been, read or not."""
        return len(self._responses)

    def ready(self) -> list[GenerationResponse]:
        """The responses that are there and not read yet; runs nothing."""
        return [self._take() for _ in range(len(self._responses) - self._read)]

    def _take(self) -> GenerationResponse:
        response = self._responses[self._read]
        assert response is not None  # only what was read is
        self._responses[self._read] = None
        self._read += 1
        return response

    def deliver(self, response: GenerationResponse) -> None:
        """For the engine: add a response."""
        self._responses.append(response)
        self.finish_reason = response.finish_reason
        self.usage = Usage(response.prompt_tokens, response.cached_tokens, response.generation_tokens)

    def end(self, error: BaseException | None = None) -> None:
        """For the engine: there will be no more."""
        self.error, self._engine = error, None
