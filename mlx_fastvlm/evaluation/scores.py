"""Predictions and the questions they answer -> a score, and how far chance could move it."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.lines import LineSink
from ..errors import UsageError, require, require_whole
from .metrics import METRICS
from .questions import Questions

if TYPE_CHECKING:
    from ..data.sinks import Destination

RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Task:
    """What is measured.

    Attributes:
        data: the file of questions; see :class:`mlx_fastvlm.evaluation.questions.Questions`.
        metric: a name in ``METRICS``.
        post_prompt: added to each question; None for the metric's own.
        by: a field of the rows: a score for each of its values, too.
        seed: of the resampling, at least 0.

    Raises:
        UsageError: a metric or a seed that can't be.
    """

    data: Path
    metric: str
    post_prompt: str | None = None
    by: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise UsageError(f"There is no metric {self.metric!r}; there are {', '.join(METRICS)}.")
        require_whole("The bootstrap's seed", self.seed)
        require(self.seed >= 0, "The bootstrap's seed must be at least 0", self.seed)

    @cached_property
    def questions(self) -> Questions:
        """The file, read and checked once; errors as for :class:`Questions`."""
        return Questions(self.data, METRICS[self.metric], self.template, self.by)

    @property
    def template(self) -> str:
        """What is added to each question."""
        return METRICS[self.metric].post_prompt if self.post_prompt is None else self.post_prompt


@dataclass(frozen=True)
class Interval:
    """A mean of scores, in percent, and where 95% of the means of as many questions drawn from these lie.

    Attributes:
        questions: how many there are.
    """

    score: float
    low: float
    high: float
    questions: int

    @classmethod
    def of(cls, scores: list[float], seed: int = 0) -> Interval:
        """By the percentile bootstrap (Efron, 1979): :data:`RESAMPLES` times as many questions, drawn with replacement.

        Args:
            scores: 0 to 1, at least one.
        """
        values, random = np.array(scores), np.random.default_rng(seed)
        means = [values[random.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
        low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return cls(100 * float(values.mean()), 100 * float(low), 100 * float(high), len(scores))


@dataclass
class Result:
    """What a model reached.

    Attributes:
        total: over all questions; those without a prediction count as wrong.
        groups: the same for each value of the task's ``by``.
        errors: how many questions have no prediction.
        first_error: of the first of them.
        cut: predictions that ended at max_tokens.
        model: the fingerprint of the weights.
    """

    metric: str
    total: Interval
    groups: dict[str, Interval] = field(default_factory=dict)
    errors: int = 0
    first_error: str | None = None
    cut: int = 0
    model: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self)
        return {"metric": found.pop("metric"), **found.pop("total"), "resamples": RESAMPLES, **found}

    def table(self) -> str:
        """In Markdown."""
        rows = [("all", self.total), *self.groups.items()] if self.groups else [("all", self.total)]
        lines = [
            ("questions", "number", f"{self.metric} (%)", f"{CONFIDENCE:.0%} interval"),
            ("---", "--:", "--:", "--:"),
        ]
        for name, found in rows:
            shown = " ".join(name.split()).replace("|", "\\|")
            lines.append((shown, str(found.questions), f"{found.score:.1f}", f"{found.low:.1f} to {found.high:.1f}"))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def score(task: Task, destination: Destination) -> Result:
    """The scores of predictions that are there."""
    scored: dict[str, float] = {}
    keys = {question.key.encode("utf-8", "backslashreplace").decode(): question for question in task.questions.all}
    first_error, cut, fingerprint = None, 0, ""
    with contextlib.closing(LineSink(destination.path([task.data]))) as sink:
        for record in sink.records():
            question = keys.get(record["key"])
            if question is None or record.get("as") != destination.append_as:
                continue
            fingerprint = record["model"]
            if "error" in record:
                named = record["error"].startswith(record["key"])
                first_error = first_error or (record["error"] if named else f"{record['key']}: {record['error']}")
                continue
            cut += record["finish_reason"] == "length"
            scored[record["key"]] = METRICS[task.metric].score(record["text"].strip(), question.answers)
    groups: dict[str, list[float]] = {}
    for key, question in keys.items():
        groups.setdefault(question.group, []).append(scored.get(key, 0.0))
    return Result(
        task.metric,
        Interval.of([scored.get(key, 0.0) for key in keys], task.seed),
        {name: Interval.of(scores, task.seed) for name, scores in sorted(groups.items())} if task.by else {},
        len(keys) - len(scored),
        first_error,
        cut,
        fingerprint,
    )
