"""What a training tells on the way, and the clock that it goes by."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

if TYPE_CHECKING:
    import mlx.optimizers as optim

    from .samples import Sample


@dataclass(frozen=True)
class Report:
    """What is told on the way.

    Attributes:
        iteration: how many batches are done.
        loss: mean cross entropy of the answers' tokens, in nats, since the last report.
        learning_rate: of the last update.
        images_per_second, tokens_per_second: since the last report; tokens are all that the decoder reads.
        answer_tokens: learnt from so far.
        peak_memory: in gigabytes, of MLX.
        valid_loss: the same of the validation set; then this is all that is told, with the iteration.
    """

    iteration: int
    loss: float | None = None
    learning_rate: float | None = None
    images_per_second: float | None = None
    tokens_per_second: float | None = None
    answer_tokens: int | None = None
    peak_memory: float | None = None
    valid_loss: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """What is known, for a line of JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Clock:
    """What has happened since the last report."""

    def __init__(self) -> None:
        self._start, self._loss = time.perf_counter(), 0.0
        self._answer_tokens = self._tokens = self._images = 0

    def count(self, batches: list[list[Sample]], loss: float, answer_tokens: int) -> None:
        samples = [sample for some in batches for sample in some]
        self._loss += loss
        self._answer_tokens += answer_tokens
        self._tokens += sum(len(sample.ids) for sample in samples)
        self._images += sum(len(sample.images) for sample in samples)

    def told(self, iteration: int, optimizer: optim.Optimizer, answer_tokens: int) -> Report:
        seconds = time.perf_counter() - self._start
        return Report(
            iteration,
            self._loss / self._answer_tokens,
            float(mx.array(optimizer.learning_rate).item()),  # type: ignore[arg-type]  # a real one
            self._images / seconds,
            self._tokens / seconds,
            answer_tokens,
            mx.get_peak_memory() / 1e9,
        )

    def stopped(self) -> Pause:
        return Pause(self)

    def forget(self, seconds: float) -> None:
        self._start += seconds


class Pause:
    """A time that does not count."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._clock.forget(time.perf_counter() - self._start)
