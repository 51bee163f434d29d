"""The model card of a converted checkpoint: what the hub files it under, and how it was made."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.publishing import CARD, USE, front_matter, license_of
from ..files import read_text

if TYPE_CHECKING:
    from .report import Report

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TERMS = ("license", "license_name", "license_link", "base_model")
_VALUE = re.compile(rf"^({'|'.join(_TERMS)})[ \t]*:[ \t]*['\"]?([^\s'\"#\[\]{{}}]+)['\"]?[ \t]*$", re.MULTILINE)
_LISTED = re.compile(r"^base_model[ \t]*:[ \t]*\n[ \t]*-[ \t]*['\"]?([^\s'\"#]+)", re.MULTILINE)


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from.

    Attributes:
        source: what the user called it.
        terms: ``license``, ``license_name``, ``license_link`` and ``base_model`` of its own card.
        licenses: names of the licence files that were copied.
    """

    source: str | Path
    terms: dict[str, str] = field(default_factory=dict)
    licenses: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, source: str | Path, folder: Path, licenses: list[str]) -> Origin:
        """Of a checkpoint in ``folder``, whose card may be there."""
        card = folder / CARD
        head = re.match(r"---\s*\n(.*?)\n---\s*\n", read_text(card), re.DOTALL) if card.is_file() else None
        terms = dict(_VALUE.findall(head[1])) if head else {}
        if head and (listed := _LISTED.search(head[1])):
            terms["base_model"] = listed[1]
        return cls(source, terms, licenses)

    @property
    def base_model(self) -> str | None:
        """The hub's name of the model that this one is a copy of, as far as it is known."""
        named = str(self.source)
        is_id = bool(_HUB_ID.fullmatch(named)) and not Path(named).exists()
        return named if is_id else self.terms.get("base_model")

    @property
    def license(self) -> dict[str, str]:
        """The card's lines about the licence: the source's own, or Apple's for Apple's; else what the files say."""
        own = {name: self.terms[name] for name in _TERMS[:3] if name in self.terms}
        if "license" in own:
            return own
        assumed = license_of(self.base_model)
        link = {"license_link": self.licenses[0]} if self.licenses and "license_name" in assumed else {}
        return {**assumed, **link}


def model_card(origin: Origin, command: str, report: Report, layout: str, quantized: bool) -> str:
    """The card, front matter first."""
    terms = (
        f"The source's terms hold for this copy as well: see {', '.join(origin.licenses)}."
        if origin.licenses
        else "The source brought no licence file along; its terms hold for this copy as well. "
        "Apple's FastVLM weights are for research only (apple-amlr)."
    )
    use = USE[layout].format(name="THIS_FOLDER")
    head = front_matter(origin.license, origin.base_model, layout, quantized)
    return (
        f"{head}\n# FastVLM, converted from `{origin.source}`\n\n"
        f"Made with mlx-fastvlm:\n\n```\n{command}\n```\n\n"
        f"```\n{report}\n```\n\n"
        f"Use it:\n\n```\n{use}\n```\n\n{terms}\n"
    )
