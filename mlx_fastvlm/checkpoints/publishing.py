"""A checkpoint for the hub: what it is filed under, and its upload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..hub import upload
from .targets import TARGETS

CARD = "README.md"
APPLES_LICENSE = "apple-amlr"  # of the released weights, for research only; the hub knows it by this name
USE = {
    "mlx": 'python -m mlx_fastvlm.generate --model {name} --image photo.jpg --prompt "What is this?"',
    "mlx-vlm": 'python -m mlx_vlm.generate --model {name} --image photo.jpg --prompt "What is this?"',
    "transformers": "transformers.FastVlmForConditionalGeneration.from_pretrained({name!r})",
}


def license_of(base_model: str | None) -> dict[str, str]:
    """The card's lines about the licence of a copy of this model: Apple's for Apple's."""
    if (base_model or "").startswith("apple/"):
        return {"license": APPLES_LICENSE}
    return {"license": "other", "license_name": "as-the-source"}


def front_matter(terms: dict[str, str], base_model: str | None, layout: str, quantized: bool) -> str:
    """The head of a model card, which the hub reads."""
    matter = {
        **terms,
        "base_model": base_model,
        "base_model_relation": ("quantized" if quantized else None) if base_model else None,
        "pipeline_tag": "image-text-to-text",
        "library_name": TARGETS[layout].library if layout in TARGETS else "mlx",
    }
    lines = "".join(f"{name}: {value}\n" for name, value in matter.items() if value)
    return f"---\n{lines}tags:\n- mlx\n- fastvlm\n- vision-language-model\n---\n"


def publish(
    folder: Path, repo: str, modules: dict[str, dict[str, Any]], layout: str, private: bool, base_model: str | None
) -> None:
    """Give a checkpoint in a folder its model card, and upload both.

    Args:
        modules: the quantized ones, see ``quantization.modules_of``.
        base_model: the hub's name of the model that this one was made from.
    """
    head = front_matter(license_of(base_model), base_model, layout, bool(modules))
    origin = f", made from `{base_model}`, whose terms hold for it as well" if base_model else ""
    use = USE[layout].format(name=repo)
    (folder / CARD).write_text(
        f"{head}\n# {repo.rpartition('/')[2]}\n\nA FastVLM{origin}. Saved with mlx-fastvlm.\n\nUse it:\n\n"
        f"```\n{use}\n```\n",
        encoding="utf-8",
    )
    upload(folder, repo, not private)
