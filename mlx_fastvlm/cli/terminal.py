"""What a terminal is shown."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..generation.answer import GenerationResponse

# What a terminal would obey: a checkpoint's names, an image's or a model's words must not move its cursor, or more.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

CUT = "(stopped at --max-tokens)"  # wherever an answer is cut


def printable(text: str) -> str:
    """The text without characters that a terminal obeys instead of showing; line breaks and tabs stay."""
    return _CONTROL.sub("\ufffd", text)


def shown(text: str) -> str:
    """What of an answer goes to stdout: for a terminal its printable text, for a file or a pipe all of it."""
    return printable(text) if sys.stdout.isatty() else text


def statistics(last: GenerationResponse) -> str:
    """One line about an answer, from its last response."""
    cut = f" {CUT}" if last.finish_reason == "length" else ""
    cached = f" ({last.cached_tokens} cached)" if last.cached_tokens else ""
    return (
        f"prompt: {last.prompt_tokens} tokens{cached}, {last.prompt_tps:.1f} tokens/s | "
        f"answer: {last.generation_tokens} tokens{cut}, {last.generation_tps:.1f} tokens/s | "
        f"first token after {last.time_to_first_token:.2f} s | peak memory {last.peak_memory:.2f} GB"
    )


class ProgressBars:
    """A bar on stderr for each step of something long, if that is a terminal; called with (step, amount, total).

    Args:
        units: what the amounts of each step are.
    """

    def __init__(self, units: dict[str, str]) -> None:
        self._units = units
        self._bars: dict[str, Any] = {}

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(self, *_: object) -> None:
        for bar in self._bars.values():
            bar.close()

    def __call__(self, step: str, amount: int, total: int) -> None:
        from tqdm import tqdm  # noqa: PLC0415  slow to import, and most commands show no bar

        if step not in self._bars:
            hidden = not sys.stderr.isatty()
            self._bars[step] = tqdm(total=total, desc=step, unit=self._units[step], unit_scale=True, disable=hidden)
        self._bars[step].update(amount)
        if self._bars[step].n >= total:  # its line is complete before the next one begins
            self._bars[step].close()
