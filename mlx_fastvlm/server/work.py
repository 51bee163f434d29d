"""What goes to the worker's thread and what comes back: plain values, no arrays."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..generation.answer import GenerationResponse
    from ..generation.choices import Decision, DecisionReading
    from ..generation.options import GenerationOptions
    from ..generation.request import Request


@dataclass(frozen=True)
class Question:
    """A prompt that was checked, its images decoded: everything that needs no array.

    Attributes:
        n: how many answers to it.
        reading: of a decision; None for answers.
    """

    request: Request
    options: GenerationOptions
    n: int = 1
    reading: DecisionReading | None = None


@dataclass(frozen=True)
class Said:
    """A response of the answer with this index; the i-th answer to the p-th question has the index p * n + i."""

    index: int
    response: GenerationResponse


class WorkerEnded(Exception):
    """The worker's thread has ended, and nobody will answer."""


@dataclass(frozen=True)
class End:
    """The last event of a request.

    Attributes:
        error: what ended it before its time; None where every answer is whole.
        decisions: one for each question that is a decision.
    """

    error: Exception | None = None
    decisions: tuple[Decision, ...] = ()


Event = Said | End


@dataclass(eq=False)
class Work:
    """One client's request on its way through the worker.

    Attributes:
        client: whose turn it takes in the queue.
        start: when it came, in ``time.perf_counter`` seconds.
        cancelled: set by the loop; the worker looks before each step.
        taken: when the worker took it from the queue, on the clock of ``start``; None while it waits.
        inbox: what has become of it so far, the last an :class:`End`. Only the loop touches it.
    """

    client: str
    questions: list[Question]
    start: float
    inbox: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    cancelled: bool = False
    taken: float | None = None

    @property
    def rows(self) -> int:
        """How many answers it asks for."""
        return sum(question.n for question in self.questions)


Delivery = tuple[Work, Event]


class Post:
    """Carries events from the worker's thread to the loop, which is woken once a step and not once an event."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        """Called in the loop."""
        self._loop = asyncio.get_running_loop()

    def send(self, deliveries: list[Delivery]) -> None:
        """Called in any thread; does not wait."""
        if not deliveries or self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(_hand_out, deliveries)
        except RuntimeError:  # the loop is closed, and with it all who waited have gone
            pass


def _hand_out(deliveries: list[Delivery]) -> None:
    for work, event in deliveries:
        work.inbox.put_nowait(event)
