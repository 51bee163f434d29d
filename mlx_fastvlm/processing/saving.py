"""A processor -> its files: tokenizer, images, template. They are what transformers reads too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..files import write_json
from .marks import IMAGE_MARK

Processor = Any  # FastVlmProcessor, which imports this file


def write_processor(
    folder: Path, tokenizer: Tokenizer, processor: Processor, template: str, name: str = "LlavaProcessor"
) -> None:
    """Write them to ``folder``.

    Args:
        name: of the class that is to read them.
    """
    tokenizer.encode_special_tokens = False
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "processor_class": name,
            "image_token": IMAGE_MARK,
            "bos_token": None,
            "unk_token": None,
            "padding_side": "left",
            **{
                key: token
                for key, token in (("eos_token", "<|im_end|>"), ("pad_token", "<|endoftext|>"))
                if token in added
            },
            **{
                key: token
                for key, token in processor.special_tokens.items()
                if tokenizer.token_to_id(token) is not None
            },
        },
    )
    write_json(folder / "preprocessor_config.json", preprocessor_config(processor))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    eos = sorted(processor.eos_token_ids)
    write_json(folder / "generation_config.json", {"eos_token_id": eos, "pad_token_id": processor.pad_token_id})


def preprocessor_config(processor: Processor) -> dict[str, Any]:
    """How images are prepared, as a ``CLIPImageProcessor`` states it."""
    settings = processor.image_settings
    resize = 1.0 if settings.resize is None else settings.resize
    size = [round(side * settings.size) for side in (resize if isinstance(resize, tuple) else (resize,))]
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": settings.resize is not None,
        "size": {"shortest_edge": size[0]} if len(size) == 1 else {"height": size[0], "width": size[1]},
        "resample": int(settings.resample),
        "do_center_crop": True,
        "crop_size": {"height": settings.size, "width": settings.size},
        "do_rescale": True,
        "rescale_factor": settings.rescale_factor,
        "do_normalize": True,
        "image_mean": list(settings.mean),
        "image_std": list(settings.std),
    }


def checkpoint_template(processor: Processor, template: str) -> str:
    """``template``, if the checkpoint's own asks about an image in the same words; else its own."""
    own: str = processor.chat_template
    question = [{"role": "user", "content": f"{IMAGE_MARK}\nWhat is this?"}]
    try:
        asked = processor.apply_chat_template(question)
    except ValueError:  # it fails at every prompt
        return own
    usual = replace(processor, chat_template=template).apply_chat_template(question)
    return template if asked == usual else own
