"""What /metrics tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

if TYPE_CHECKING:
    from .log import Record
    from .worker import Worker

SECONDS_TO_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
SECONDS_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)


class Metrics:
    """Counters of one server, in a registry of its own: a process may have several, as tests do."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests by endpoint and status.", "endpoint", "status")
        self._cancelled = self._counter("cancelled_requests", "Requests whose client left before the end.")
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts, those of images included.")
        self._cached_tokens = self._counter("cached_tokens", "Those of them that a cache held already.")
        self._answer_tokens = self._counter("answer_tokens", "Tokens of answers.")
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "From a request's head to its first token.", SECONDS_TO_FIRST
        )
        self.between_tokens = self._histogram(
            "time_between_tokens_seconds", "Between two tokens of an answer.", SECONDS_BETWEEN
        )

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"fastvlm_{name}", help, labels, registry=self._registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"fastvlm_{name}", help, registry=self._registry, buckets=buckets)

    def _gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        Gauge(f"fastvlm_{name}", help, registry=self._registry).set_function(read)

    def watch(self, worker: Worker, waiting: Callable[[], int], open_requests: Callable[[], int]) -> None:
        """Read these whenever somebody asks. What is MLX's, the worker has read before."""
        self._gauge("open_requests", "Requests that were accepted and are not answered yet.", open_requests)
        self._gauge("queue_length", "Requests that wait for their turn.", waiting)
        self._gauge("running_rows", "Answers that are being made.", lambda: worker.rows)
        self._gauge("worker_busy_seconds", "Since the step at hand began.", lambda: worker.busy_for)
        self._gauge("memory_active_bytes", "Of MLX's memory, what is in use.", lambda: worker.memory.active)
        self._gauge("memory_cached_bytes", "Of MLX's memory, what is kept for later.", lambda: worker.memory.cached)
        self._gauge("memory_peak_bytes", "The most that MLX has used.", lambda: worker.memory.peak)
        images, prompts = worker.vision_cache, worker.prefix_cache
        self._gauge("vision_cache_hits", "Images whose features were known.", lambda: images.hits)
        self._gauge("vision_cache_misses", "Images that went through the tower.", lambda: images.misses)
        self._gauge("prefix_cache_hits", "Prompts that begin like an earlier one.", lambda: prompts.hits)
        self._gauge("prefix_cache_misses", "Prompts that do not.", lambda: prompts.misses)

    def count(self, record: Record) -> None:
        """A request that has ended."""
        self._requests.labels(record.endpoint, str(record.status or "none")).inc()
        if record.cancelled:
            self._cancelled.inc()
        self._prompt_tokens.inc(record.prompt_tokens)
        self._cached_tokens.inc(record.cached_tokens)
        self._answer_tokens.inc(record.answer_tokens)

    def text(self) -> bytes:
        return generate_latest(self._registry)
