"""What becomes of one image in an engine: a text, JSON, a decision, or an error, as its record has it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import one_line
from .choices import DecisionReading, read_choices

if TYPE_CHECKING:
    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.processor import FastVlmProcessor
    from .answer import Answer
    from .engine import Engine
    from .options import GenerationOptions
    from .request import Request

Outcome = dict[str, Any]


@dataclass
class Pending:
    """An answer in the making, its text so far, and for a decision what its prompt left in the caches."""

    answer: Answer
    text: str = ""
    reading: DecisionReading | None = None


class Texts:
    """Outcomes that are texts; JSON where the options have a schema and the answer was not cut."""

    def __init__(self, engine: Engine, options: GenerationOptions) -> None:
        self._engine, self._options = engine, options

    def ask(self, request: Request) -> Pending:
        return Pending(self._engine.enqueue(request, self._options))

    def outcome(self, pending: Pending) -> Outcome | None:
        """None while it is not known."""
        answer = pending.answer
        pending.text += "".join(response.text for response in answer.ready())
        if not answer.ended:
            return None
        if answer.error is not None:
            return outcome_of_error(answer.error)
        found: Outcome = {"text": pending.text}
        if self._options.json_schema is not None and answer.finish_reason == "stop":
            with contextlib.suppress(ValueError, RecursionError):
                found = {"json": json.loads(pending.text)}
        usage = answer.usage
        return {
            **found,
            "finish_reason": answer.finish_reason,
            "prompt_tokens": usage.prompt_tokens,
            "generation_tokens": usage.generation_tokens,
        }


class Decisions:
    """Outcomes that are choices with their probabilities."""

    def __init__(
        self,
        engine: Engine,
        model: FastVlmForConditionalGeneration,
        processor: FastVlmProcessor,
        options: GenerationOptions,
        choices: list[str],
    ) -> None:
        self._engine, self._model, self._processor, self._options = engine, model, processor, options
        self._choices = choices
        read_choices(processor, choices)  # what is wrong with them is told before an image is opened

    def ask(self, request: Request) -> Pending:
        reading = DecisionReading(self._processor, self._choices)
        return Pending(self._engine.enqueue(request, reading.options(self._options)), reading=reading)

    def outcome(self, pending: Pending) -> Outcome | None:
        """None while it is not known."""
        if not pending.answer.ended:
            return None
        if pending.answer.error is not None:
            return outcome_of_error(pending.answer.error)
        assert pending.reading is not None
        try:
            found = pending.reading.decide(self._model)
        except Exception as error:  # NaN, which is one image's fault
            return outcome_of_error(error)
        return {"choice": found.choice, "probabilities": found.probabilities}


def outcome_of_error(error: BaseException) -> Outcome:
    text = " ".join(str(error).split())
    known = isinstance(error, (ValueError, OSError))
    return {"error": one_line(text) if known and text else f"{type(error).__name__}: {one_line(text)}"}
