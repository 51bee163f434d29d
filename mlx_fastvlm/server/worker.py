"""The one thread that owns MLX: it loads the model, drives the engine, and gives back plain values."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import mlx.core as mx

from ..cache.prefix import PrefixCache
from ..cache.vision import VisionCache
from ..generation.constraints import ConstraintError
from ..generation.engine import Engine
from ..models.memory import give_back
from .work import Delivery, End, Said, Work, WorkerEnded

if TYPE_CHECKING:
    from ..generation.answer import Answer
    from ..generation.choices import Decision
    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.processor import FastVlmProcessor
    from .fairness import FairQueue
    from .work import Question

    Load = Callable[[], tuple[FastVlmForConditionalGeneration, FastVlmProcessor]]

log = logging.getLogger("mlx_fastvlm.server")

# A device's error is no answer's own, so the step is tried again; from the second in a row on, the newest answers are
# given up, which may have been too many for the memory. After so many in a row without a step that went well, the
# device is beyond help.
GIVE_UP = 8
IDLE = 10.0  # seconds without work, after which buffers go back to the system


@dataclass
class _Running:
    """A request whose answers are being made."""

    work: Work
    asked: list[tuple[Question, Answer]] = field(default_factory=list)
    open: list[int] = field(default_factory=list)  # places in ``asked`` of what has not ended
    decisions: list[Decision] = field(default_factory=list)


@dataclass(frozen=True)
class Memory:
    """MLX's, in bytes."""

    active: int = 0
    cached: int = 0
    peak: int = 0


class Worker:
    """Takes work from a queue as long as the engine has room, and sends what comes of it.

    Everything that computes happens in its thread, from loading the model to letting it go: MLX's streams belong to the
    thread that made them, and two threads that evaluate at once can end the process.

    Args:
        load: gives model and processor; called in the thread.
        waiting: where requests wait.
        send: called with the events of each step; must not wait.

    Attributes:
        error: what ended the thread; None while it runs, and after :meth:`stop`.
        engine: None until the model is loaded. Other threads may call its ``request``, which reads what never changes.
        rows: answers that are being made.
        memory: as the thread saw it last.
        vision_cache, prefix_cache: what the engine keeps of images and beginnings of prompts.
    """

    def __init__(
        self, load: Load, waiting: FairQueue[Work], max_rows: int, send: Callable[[list[Delivery]], None]
    ) -> None:
        self._load, self._waiting, self._max_rows, self._send = load, waiting, max_rows, send
        self._thread = threading.Thread(target=self._run, name="mlx", daemon=True)
        self._loaded = threading.Event()
        self._stopping = False
        self._busy_since: float | None = None
        self._running: list[_Running] = []
        self._failures = 0
        self.error: BaseException | None = None
        self._model: FastVlmForConditionalGeneration | None = None
        self.engine: Engine | None = None
        self.rows = 0
        self.memory = Memory()
        self.vision_cache, self.prefix_cache = VisionCache(), PrefixCache()

    # For other threads

    def start(self) -> None:
        self._thread.start()

    def wait_until_loaded(self) -> None:
        """Raises what loading raised."""
        self._loaded.wait()
        if self.error is not None:
            raise self.error

    @property
    def loading(self) -> bool:
        return not self._loaded.is_set()

    @property
    def alive(self) -> bool:
        """Whether the thread has not ended."""
        return self._thread.is_alive()

    @property
    def busy_for(self) -> float:
        """Seconds since the step at hand began; 0 while there is nothing to do, or the model is loading."""
        since = self._busy_since
        return 0.0 if since is None else time.perf_counter() - since

    def stop(self, timeout: float) -> bool:
        """End the thread between two steps, with an error for whatever is not answered; False if it did not in time."""
        self._stopping = True
        self._waiting.wake()
        self._thread.join(timeout)
        return not self.alive

    # In the thread

    def _run(self) -> None:
        try:
            self._begin()
            while not self._stopping:
                self._turn()
        except BaseException as error:
            self.error = error
            if not self.loading:  # else whoever waits for the model says so
                log.critical("the worker has ended", exc_info=error)
        finally:
            self._end()
            self._loaded.set()

    def _begin(self) -> None:
        model, processor = self._load()
        if self._stopping:
            return
        self._model = model
        self.engine = Engine(
            model,
            processor,
            max_rows=self._max_rows,
            vision_cache=self.vision_cache,
            prefix_cache=self.prefix_cache,
        )
        self._loaded.set()

    def _end(self) -> None:
        """Let go of everything that MLX made, in the thread that made it."""
        deliveries: list[Delivery] = []
        for running in self._running:
            self._give_up(running)
            deliveries.append((running.work, End(WorkerEnded())))
        deliveries += [(work, End(WorkerEnded())) for work in self._waiting.close()]
        self._running, self.rows, self._busy_since = [], 0, None
        self._model = self.engine = None
        self._send(deliveries)  # last: whoever is told finds that the server is not ready

    def _turn(self) -> None:
        """One step, or a rest until there is something to do."""
        self._busy_since = time.perf_counter()
        deliveries: list[Delivery] = []
        self._drop_cancelled()
        self._admit(deliveries)
        if self._running:
            self._step(deliveries)
            self._collect(deliveries)
            self._note()
        self._send(deliveries)
        if not self._running and not deliveries:
            self._busy_since = None
            self._rest()

    def _rest(self) -> None:
        self._note()
        if not self._waiting.wait(IDLE):
            give_back()
            self._note()
            self._waiting.wait()

    def _note(self) -> None:
        self.rows = sum(len(running.open) for running in self._running)
        self.memory = Memory(mx.get_active_memory(), mx.get_cache_memory(), mx.get_peak_memory())

    def _drop_cancelled(self) -> None:
        for running in self._running:
            if running.work.cancelled:
                self._give_up(running)
        self._running = [running for running in self._running if not running.work.cancelled]

    def _give_up(self, running: _Running) -> None:
        for place in running.open:
            running.asked[place][1].close()
        running.open = []

    def _admit(self, deliveries: list[Delivery]) -> None:
        """Take as many requests as there is room for, so that the others' turns are decided as late as can be."""
        assert self.engine is not None
        while self.engine.room and (work := self._waiting.take()) is not None:
            if work.cancelled:
                continue
            work.taken = time.perf_counter()
            running = _Running(work)
            try:
                for question in work.questions:
                    self._ask(running, question)
            except Exception as error:
                self._give_up(running)
                deliveries.append((work, End(_plain(error))))
            else:
                self._running.append(running)

    def _ask(self, running: _Running, question: Question) -> None:
        assert self.engine is not None
        answers = self.engine.enqueue_n(question.n, question.request, question.options, running.work.start)
        running.open += range(len(running.asked), len(running.asked) + len(answers))
        running.asked += [(question, answer) for answer in answers]

    def _step(self, deliveries: list[Delivery]) -> None:
        assert self.engine is not None
        try:
            self.engine.step()
            self._failures = 0
        except Exception as error:  # no answer's own; the engine goes on from what has been delivered
            self._failures += 1
            log.error("a step failed, %d in a row", self._failures, exc_info=error)
            if self._failures >= GIVE_UP:
                raise
            if self._failures > 1:
                newest = self._running.pop()
                self._give_up(newest)
                deliveries.append((newest.work, End(_plain(error))))

    def _collect(self, deliveries: list[Delivery]) -> None:
        """What the step has brought, and the ends of the requests that it ended."""
        for running in self._running:
            for place in list(running.open):
                _, answer = running.asked[place]
                deliveries += [(running.work, Said(place, response)) for response in answer.ready()]
                if answer.ended:
                    running.open.remove(place)
            error = self._finish(running)
            if error is not None:
                self._give_up(running)
            if not running.open:
                deliveries.append((running.work, End(error, tuple(running.decisions))))
        self._running = [running for running in self._running if running.open]

    def _finish(self, running: _Running) -> Exception | None:
        """The error of an answer, if one has any; else decide where a question's reading has ended."""
        for _, answer in running.asked:
            if isinstance(answer.error, Exception):
                if not isinstance(answer.error, ConstraintError):  # the client's own, and told to it
                    log.error("an answer failed", exc_info=answer.error)
                return _plain(answer.error)
        if not running.open:
            assert self._model is not None
            try:
                readings = [question.reading for question, _ in running.asked if question.reading is not None]
                running.decisions = [reading.decide(self._model) for reading in readings]
            except Exception as error:
                log.error("a decision failed", exc_info=error)
                return _plain(error)
        return None


def _plain(error: Exception) -> Exception:
    """Without the traceback, whose frames hold arrays that belong to the thread."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
