"""What transformers makes of a case. Needs torch, timm and transformers; see tests/support/reference/record.py."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.support.reference import record  # noqa: F401, isort: skip  (makes timm importable)

import timm.models.fastvit
import torch
from PIL import Image
from transformers import AutoProcessor, FastVlmConfig, FastVlmForConditionalGeneration
from transformers.initialization import no_init_weights
from transformers.utils import logging

from tests.support.differential import folders
from tests.support.differential.draws import Case
from tests.support.differential.prompts import Row
from tests.support.reference.image_settings import padded

STEPS = 4

torch.set_num_threads(1)
torch.set_grad_enabled(False)
logging.disable_progress_bar()
logging.set_verbosity_error()
timm.models.fastvit.trunc_normal_ = lambda *_, **__: None  # weights come from files, and drawing them takes the longest


@dataclass
class Inputs:
    ids: torch.Tensor
    mask: torch.Tensor
    pixels: torch.Tensor | None


def shapes(described: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a configuration's checkpoint."""
    with no_init_weights():
        model = FastVlmForConditionalGeneration(FastVlmConfig.from_dict(described))
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def load_model(folder: Path):
    """The model, and what its files lack or have too much of."""
    model, report = FastVlmForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    return model.eval(), {name: found for name, found in report.items() if found}


def load_processor(folder: Path):
    return AutoProcessor.from_pretrained(folder, backend="pil")  # torchvision's resampling is another


def save_tokenizer(processor, folder: Path):
    """``tokenizer.json`` instead of ``vocab.json`` and ``merges.txt``."""
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    processor.tokenizer.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings.pop("added_tokens_decoder")
    folders.write(folder / "tokenizer_config.json", settings)


def prompt(processor, row: Row) -> str:
    if row.text is not None:
        return row.text
    return processor.apply_chat_template(row.messages, add_generation_prompt=True, tokenize=False)


def inputs(processor, case: Case, rows: list[Row]) -> Inputs:
    images = [shown(processor, case, image) for row in rows for image in row.images]
    texts = [prompt(processor, row) for row in rows]
    made = processor(
        text=texts, images=images or None, padding=True, padding_side=case["padding_side"], return_tensors="pt"
    )
    return Inputs(made["input_ids"], made["attention_mask"], made.get("pixel_values"))


def shown(processor, case: Case, image: Image.Image) -> Image.Image:
    """Apple's program puts bars around an image first, if the file asks for it (LLaVA's expand2square)."""
    if case["layout"] in folders.LLAVA and case["aspect"] == "pad":
        return padded(image.convert("RGB"), processor.image_processor.image_mean)
    return image


def features(model, pixels: torch.Tensor) -> np.ndarray:
    return model.get_image_features(pixels).pooler_output.numpy()


def forward(model, given: Inputs, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Logits of all places, and the loss."""
    images = {} if given.pixels is None else {"pixel_values": given.pixels}
    out = model(input_ids=given.ids, attention_mask=given.mask, labels=torch.from_numpy(labels), **images)
    return out.logits.numpy(), out.loss.item()


def greedy(model, ids: torch.Tensor, pixels: torch.Tensor | None) -> tuple[list[int], np.ndarray]:
    """The next tokens of one prompt over a KV cache, and the logits that each was chosen from."""
    images = {} if pixels is None else {"pixel_values": pixels}
    out = model(input_ids=ids, use_cache=True, **images)
    tokens, logits = [], []
    for step in range(STEPS):
        if step:
            new = torch.tensor([[tokens[-1]]])
            out = model(input_ids=new, past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits[0, -1].numpy())
        tokens.append(int(logits[-1].argmax()))
    return tokens, np.stack(logits)
