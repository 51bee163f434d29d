"""Whether two checkpoints compute the same: the converter's proof, and the published golden values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from PIL import Image, ImageDraw

from ..checkpoints.weights import Weights, cast
from ..models.fastvlm import FastVlmForConditionalGeneration
from ..models.loading import build_model
from ..processing.messages import user_message

if TYPE_CHECKING:
    from ..config import FastVlmConfig
    from ..processing.images import ImageSource
    from ..processing.processor import FastVlmProcessor

# An image and a text that have something of everything; the tokens of the text are what is compared.
PROMPT = (
    "Describe the picture. It shows a red disc in front of a blue square on a ground that fades from grey to green; "
    "a thin yellow line crosses both. Which of the two shapes is larger, how many colours are there, and what would "
    "change if the line were 3.5 times as wide? Answer in one sentence, then list the shapes: 1) disc, 2) square, "
    "3) line. Then say the same once more in other words, as if to somebody who can't see the picture at all."
)
IMAGE_SIZE = 256  # pixels: 16 tokens of the released models, quick even on a CPU
LIMIT = 1e-4  # standard deviations: rounding in another order, and nothing else

# The last token's first three logits for the COCO image 000000039769 and "What are these?", in bfloat16 and with
# transformers' centre crop, as transformers' own tests publish them. By the decoder's width.
GOLDEN = {
    896: ("0.5B", (4.125, 9.6875, 11.1875)),
    1536: ("1.5B", (3.375, 11.5, 11.8125)),
    3584: ("7B", (3.8281, 9.0625, 7.9062)),
}
GOLDEN_TOLERANCE = 0.25  # a few steps of bfloat16 at this size, which is what another backend's rounding makes


@dataclass(frozen=True)
class Agreement:
    """How two models' next-token predictions compare, over the same context.

    Attributes:
        positions: how many predictions were compared.
        max_difference: the largest difference of a logit, in standard deviations of the reference's logits.
        kl_divergence: mean of KL(reference || other), in nats.
        same_next_token: share of positions at which both find the same token likeliest.
    """

    positions: int
    max_difference: float
    kl_divergence: float
    same_next_token: float

    def __str__(self) -> str:
        return (
            f"largest logit difference {self.max_difference:.1e} standard deviations, KL divergence "
            f"{self.kl_divergence:.1e} nats, same next token {self.same_next_token:.1%} of {self.positions} times"
        )


def sample_image(size: int) -> Image.Image:
    """The built-in image."""
    levels = np.linspace(0, 1, size)[:, None, None] * np.ones((1, size, 1))
    ground = (1 - levels) * np.array([128, 128, 128]) + levels * np.array([40, 160, 60])
    image = Image.fromarray(ground.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.rectangle([size * 0.45, size * 0.4, size * 0.9, size * 0.85], fill=(30, 60, 200))
    draw.ellipse([size * 0.1, size * 0.15, size * 0.6, size * 0.65], fill=(210, 30, 40))
    draw.line([0, size * 0.9, size, size * 0.1], fill=(250, 220, 40), width=max(1, size // 64))
    return image


def predictions(
    weights: Weights,
    config: FastVlmConfig,
    processor: FastVlmProcessor,
    progress: Callable[[int], None] = lambda _: None,
) -> mx.array:
    """Logits after each token of :data:`PROMPT`, in float32: (positions, vocabulary size).

    The layers run one after the other and are dropped as soon as they have, so that a model that is larger than the
    memory can be checked: ``weights`` are used up. ``progress`` is told 1 after each of them.
    """
    tensors = cast(weights.tensors, mx.float32)
    weights.tensors.clear()
    model = build_model(FastVlmForConditionalGeneration, replace(weights, tensors=tensors), config, mx.float32)
    del tensors
    size = min(IMAGE_SIZE, processor.image_settings.size)
    ids = processor.encode_chat(user_message(PROMPT, images=1), image_size=size)
    features = model.get_image_features(processor.preprocess(sample_image(size), size))
    mx.eval(features)
    del model.vision_tower, model.multi_modal_projector
    x = model.embed(mx.array([ids]), features)
    mx.eval(x)
    if not weights.tied:  # otherwise it is the head as well
        del model.language_model.embed_tokens
    layers: list[Any] = model.language_model.layers
    for i in range(len(layers)):
        x = layers[i](x, "causal")
        mx.eval(x)
        layers[i] = None
        progress(1)
    after = ids[::-1].index(processor.image_token_id)  # the tokens behind the image
    logits = model.logits(model.language_model.norm(x[0, -after:]))
    mx.eval(logits)
    return logits


def compare(reference: mx.array, other: mx.array) -> Agreement:
    """Agreement of two models' :func:`predictions`. Rows that only one vocabulary has are left out."""
    if reference.shape[0] != other.shape[0]:
        raise ValueError(
            f"The two tokenizers cut the same text into {reference.shape[0]} and {other.shape[0]} tokens; "
            "check the tokenizer files."
        )
    shared = min(reference.shape[1], other.shape[1])
    reference, other = reference[:, :shared], other[:, :shared]
    p, q = (x - mx.logsumexp(x, axis=-1, keepdims=True) for x in (reference, other))
    difference = mx.abs(reference - other).max() / mx.std(reference)
    figures: list[Any] = [
        difference.item() if mx.isfinite(difference).item() else math.inf,
        (mx.exp(p) * (p - q)).sum(axis=-1).mean().item(),
        (reference.argmax(axis=-1) == other.argmax(axis=-1)).mean().item(),
    ]
    return Agreement(reference.shape[0], *figures)


def golden(model: FastVlmForConditionalGeneration, processor: FastVlmProcessor, source: ImageSource) -> str:
    """Compare the released weights, in bfloat16, with the published values; a sentence that says what was compared.

    Args:
        source: the COCO image 000000039769.

    Raises:
        ValueError: for a model that has no published values, or where they differ.
    """
    width = model.config.text_config.hidden_size
    if width not in GOLDEN or model.config.num_image_tokens != 256:
        raise ValueError(
            f"There are published values for FastVLM 0.5B, 1.5B and 7B only, not for a decoder of width {width}; "
            "verify without golden."
        )
    name, published = GOLDEN[width]
    cropping = replace(processor, image_settings=replace(processor.image_settings, aspect_ratio="crop"))
    ids = cropping.encode_chat(user_message("What are these?", images=1))
    logits = model(mx.array([ids]), cropping.preprocess(source), logits_to_keep=1).logits[0, -1, :3]
    ours: Any = logits.astype(mx.float32).tolist()
    said = (
        f'FastVLM-{name}, COCO image 000000039769, "What are these?", centre crop, {len(ids)} tokens: the last '
        f"token's first logits are {', '.join(f'{x:.4f}' for x in ours)}, "
        f"published are {', '.join(map(str, published))}"
    )
    if not all(abs(a - b) <= GOLDEN_TOLERANCE for a, b in zip(ours, published)):
        raise ValueError(f"{said}, which differs by more than {GOLDEN_TOLERANCE}; the weights or the code are wrong.")
    return said
