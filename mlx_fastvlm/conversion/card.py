"""The model card of a converted checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .report import Report


def model_card(source: str | Path, command: str, report: Report, licenses: list[str]) -> str:
    terms = (
        f"The source's terms hold for this copy as well: see {', '.join(licenses)}."
        if licenses
        else "The source brought no licence file along; its terms hold for this copy as well. "
        "Apple's FastVLM weights are for research only (apple-amlr)."
    )
    return (
        f"---\nlibrary_name: mlx\ntags:\n- mlx\n- fastvlm\n- vision-language-model\n---\n\n"
        f"# FastVLM, converted from `{source}`\n\n"
        f"Made with mlx-fastvlm:\n\n```\n{command}\n```\n\n"
        f"```\n{report}\n```\n\n"
        "Use it:\n\n```\n"
        'python -m mlx_fastvlm.generate --model THIS_FOLDER --image photo.jpg --prompt "What is this?"\n'
        f"```\n\n{terms}\n"
    )
