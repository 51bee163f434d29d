"""The losses of a training, as lines of JSON, as an image, and in TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..files import json_line

if TYPE_CHECKING:
    from .reports import Report

LOG = "log.jsonl"


class Log:
    """The reports of a training, a line each, in a file that a resumed one goes on with.

    Args:
        path: replaced, unless ``resume``; then what was told of iterations that are trained again is forgotten.
    """

    def __init__(self, path: Path, resume: bool = False) -> None:
        self._path = path
        self.told: list[dict[str, Any]] = []
        self._before = _read(path) if resume else []

    def add(self, report: Report) -> None:
        """Write one more."""
        if not self.told:
            self.told = [line for line in self._before if line["iteration"] < report.iteration]
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text("".join(json_line(line) + "\n" for line in self.told), encoding="utf-8")
        self.told.append(report.to_dict())
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json_line(self.told[-1]) + "\n")


class TensorBoard:
    """The same reports as curves in TensorBoard, whose package must be there; a resumed training adds to them.

    Args:
        folder: for ``tensorboard --logdir``.

    Raises:
        UsageError: the package is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._writer = tensorboard_writer()(str(folder))

    def add(self, report: Report) -> None:
        """Write one more; it can be seen at once."""
        told = report.to_dict()
        iteration = told.pop("iteration")
        for name, value in told.items():
            self._writer.add_scalar(name, value, iteration)
        self._writer.flush()


def tensorboard_writer() -> Any:
    """TensorBoard's class of writers; ``UsageError`` if it is missing."""
    try:
        from tensorboard.summary import Writer  # noqa: PLC0415  an extra
    except ImportError:
        raise UsageError('--report-to needs one more package: pip install "mlx-fastvlm[tensorboard]".') from None
    return Writer


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; those that a killed process left broken are passed over."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(told, dict) and isinstance(told.get("iteration"), int):
            found.append(told)
    return found


def plot_losses(told: list[dict[str, Any]], path: Path, title: str) -> None:
    """Training and validation losses over the iterations; needs matplotlib."""
    from matplotlib.figure import Figure  # noqa: PLC0415  an extra

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for key, name, marker in (("loss", "training", ""), ("valid_loss", "validation", "o")):
        points = [(line["iteration"], line[key]) for line in told if key in line]
        if points:
            axes.plot(*zip(*points), marker=marker, linewidth=2, label=name)
    axes.set(xlabel="iteration", ylabel="cross entropy (nats a token)", title=title, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
