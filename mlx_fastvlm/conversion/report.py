"""What a conversion did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .verification import Agreement


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        size_before, size_after: bytes of all tensors in the source's files and in the written ones.
        bits_per_weight: of the written ones.
        seconds: for all of it, verification included.
        peak_memory: the most memory that MLX has used while writing, in bytes.
        kept: modules that stayed in full precision because the group size does not divide their width.
        agreement: with the source, in float32; None where verification was skipped.
        golden: what the golden check compared; None where it was not asked for.
    """

    size_before: int
    size_after: int
    bits_per_weight: float
    seconds: float
    peak_memory: int
    kept: list[str]
    agreement: Agreement | None
    golden: str | None

    def __str__(self) -> str:
        rows = [
            ("size", f"{readable_size(self.size_before)} -> {readable_size(self.size_after)}"),
            ("bits per weight", f"{self.bits_per_weight:.2f}"),
            ("time", f"{self.seconds:.1f} s"),
            ("peak memory", readable_size(self.peak_memory)),
            ("agreement", str(self.agreement) if self.agreement else "not verified"),
        ]
        if self.golden:
            rows.append(("golden", self.golden))
        if self.kept:
            rows.append(("full precision", f"{len(self.kept)} modules the group size does not divide:"))
            rows += [("", name) for name in self.kept]
        return "\n".join(f"{label:16} {value}" for label, value in rows)


def readable_size(size: int) -> str:
    """Bytes in gigabytes, or megabytes where those are few."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
