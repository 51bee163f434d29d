"""What all requests of a server share: the worker, the queue before it, the threads that prepare, and the limits."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from .body import Bodies
from .dialect.ask import Served
from .dialect.errors import RequestError, queue_full, unavailable
from .fairness import FairQueue, QueueClosed
from .metrics import Metrics
from .work import End, Post, Work
from .worker import Worker

if TYPE_CHECKING:
    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.processor import FastVlmProcessor
    from .settings import ServerSettings
    from .worker import Load

log = logging.getLogger("mlx_fastvlm.server")
Result = TypeVar("Result")

MAX_IMAGE_SIZE = 1024  # pixels that images may be scaled up to, or the checkpoint's own size if that is more
LOOK = 1.0  # seconds between two looks at the worker
EXIT_CODE = 70  # of a process whose worker ended or hangs: EX_SOFTWARE


class Service:
    """One server's state; all but the worker's thread and the pool's belongs to the loop.

    Args:
        exit: ends the process, whatever else still runs in it.
    """

    def __init__(self, settings: ServerSettings, load: Load, exit: Callable[[int], object] = os._exit) -> None:
        self.settings, self._exit = settings, exit
        self.waiting: FairQueue[Work] = FairQueue()
        self._post = Post()
        self.worker = Worker(self._limited(load), self.waiting, settings.max_rows, self._post.send)
        self.metrics = Metrics()
        self.metrics.watch(self.worker, lambda: len(self.waiting), lambda: self._open.total())
        self.bodies = Bodies(settings)
        self._pool = ThreadPoolExecutor(settings.decode_threads, "prepare")
        self._preparing: dict[str, asyncio.Semaphore] = {}
        self._open: Counter[str] = Counter()  # requests that count against the limits, by client
        self._works: set[Work] = set()
        self._seconds = 1.0  # that a request took lately
        self._served: Served | None = None
        self.stopping = False

    def _limited(self, load: Load) -> Load:
        """The same with the server's limit for images."""

        def limited() -> tuple[FastVlmForConditionalGeneration, FastVlmProcessor]:
            model, processor = load()
            return model, replace(processor, max_pixels=self.settings.max_pixels)

        return limited

    @property
    def served(self) -> Served:
        """What the dialect must know; ``RequestError`` while the model is not there."""
        if self._served is None:
            self.check()
            assert self.worker.engine is not None  # it is loaded
            processor, settings = self.worker.engine.processor, self.settings
            self._served = Served(
                settings.served_name,
                processor.image_settings.size,
                processor.token_bytes,
                processor.eos_token_ids,
                aliases=(settings.model,),
                created=int(time.time()),
                max_image_size=max(MAX_IMAGE_SIZE, processor.image_settings.size),
                limits=settings,
            )
        return self._served

    # Readiness

    @property
    def trouble(self) -> str | None:
        """Why nothing can be answered now; None where all is well."""
        if self.worker.loading and self.worker.alive:
            return "The model is still loading; try again soon."
        if not self.worker.alive or self.worker.engine is None:
            return "The part of the server that answers has ended; it will be started again if something does so."
        if self.worker.busy_for > self.settings.hang_limit:
            return "The part of the server that answers does not respond; it will be ended soon."
        return "The server is being stopped; try again when it is back." if self.stopping else None

    def check(self) -> None:
        """``RequestError`` where nothing can be answered now."""
        trouble = self.trouble
        if trouble is not None:
            raise unavailable(trouble, retry_after=5)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the block runs, the worker's events arrive, and somebody looks after it."""
        self._post.open()
        task = asyncio.get_running_loop().create_task(self._look_after())
        try:
            yield
        finally:
            task.cancel()
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def _look_after(self) -> None:
        """A worker that ended or hangs can't be mended in here: clients are told, then the process ends."""
        lost_since: float | None = None
        while True:
            await asyncio.sleep(min(LOOK, self.settings.hang_limit / 2, self.settings.exit_after / 2))
            lost = not self.worker.alive or self.worker.busy_for > self.settings.hang_limit
            if not lost or self.stopping:
                lost_since = None
                continue
            if lost_since is None:
                lost_since = time.perf_counter()
                log.critical("the worker ended or hangs", extra={"fields": {"busy_s": round(self.worker.busy_for, 1)}})
                self.end_all()
            if time.perf_counter() - lost_since >= self.settings.exit_after:
                log.critical("the process ends, so that it is started again")
                self._exit(EXIT_CODE)

    def end_all(self) -> None:
        """Tell every client that waits that nothing will come."""
        for work in self._works:
            work.inbox.put_nowait(End(unavailable(self.trouble or "The server is being stopped.", retry_after=5)))

    # One request

    @contextmanager
    def counted(self, client: str) -> Iterator[None]:
        """A request that counts against the limits while the block runs; ``RequestError`` where there are too many.

        Where all places are taken, one that waits for a client that has more of them than this one makes room.
        """
        if self._open.total() >= self.settings.max_rows + self.settings.max_queue:
            displaced = self.waiting.displace(self._open[client] + 1)
            if displaced is None:
                raise self.too_many()
            displaced.inbox.put_nowait(End(self.too_many()))
        self._open[client] += 1
        start = time.perf_counter()
        try:
            yield
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]
                self._preparing.pop(client, None)
            self._seconds += (time.perf_counter() - start - self._seconds) / 16

    def too_many(self) -> RequestError:
        """``RequestError`` that says when to come again: after what is there, as fast as it went lately."""
        rounds = self._open.total() / self.settings.max_rows
        return queue_full(min(60, max(1, math.ceil(self._seconds * rounds))))

    async def prepare(self, client: str, work: Callable[[], Result], seconds: float) -> Result:
        """``work()`` in a thread of the pool. One client never has all of them, while it is not the only one.

        Raises:
            asyncio.TimeoutError: it takes longer. The thread can't be stopped, and counts as the client's until it has
                ended.
        """
        most = max(1, self.settings.decode_threads - 1)
        gate = self._preparing.setdefault(client, asyncio.Semaphore(most))

        async def in_pool() -> Result:
            async with gate:
                return await asyncio.get_running_loop().run_in_executor(self._pool, work)

        task = asyncio.get_running_loop().create_task(in_pool())
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # also where nobody waits any more
        return await asyncio.wait_for(asyncio.shield(task), seconds)

    @contextmanager
    def queued(self, work: Work) -> Iterator[None]:
        """In the queue, or with the worker, while the block runs."""
        self.check()
        try:
            self.waiting.put(work, work.client, work.rows)
        except QueueClosed:
            raise unavailable("The server has stopped answering; try again soon.", retry_after=5) from None
        self._works.add(work)
        try:
            yield
        finally:
            work.cancelled = True  # which means nothing to one that has ended
            self.waiting.discard(work)
            self._works.discard(work)
