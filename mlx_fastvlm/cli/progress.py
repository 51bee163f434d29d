"""How far a data set is: rate, time left, errors, on a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..generation.dataset import Summary


class DatasetProgress:
    """A bar on stderr, if that is a terminal; called with the summary so far."""

    def __init__(self, *, hidden: bool = False) -> None:
        from tqdm import tqdm  # noqa: PLC0415  slow to import, and most commands show no bar

        self._bar: Any = tqdm(unit=" images", disable=hidden or not sys.stderr.isatty(), dynamic_ncols=True)

    def __enter__(self) -> DatasetProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, summary: Summary) -> None:
        done = summary.answered + summary.errors
        # Records of an earlier run count as there from the beginning, or the rate would be theirs too.
        self._bar.total = None if summary.total is None else max(done, summary.total - summary.skipped)
        self._bar.set_postfix(errors=summary.errors, hits=summary.hits, refresh=False)
        self._bar.update(done - self._bar.n)
