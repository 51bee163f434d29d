"""Conversations -> token ids, and which of them are learnt: every answer and the token that ends it, nothing else.

Where an answer lies is not looked for. Each is rendered as the model would give it: behind the prompt of all turns
before it; and the whole conversation must begin with exactly that. So neither words like "assistant" in a text nor a
template that changes texts can move the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from ..processing.marks import AnswerText

if TYPE_CHECKING:
    from ..processing.processor import FastVlmProcessor
    from .conversations import Conversation
    from .rows import ImageSource


@dataclass(frozen=True)
class Sample:
    """A conversation as the model reads it.

    Attributes:
        ids: token ids, placeholders of images among them.
        learnt: (start, stop) of each answer in them, its end token included.
        images: their sources, in reading order.
        place: file and row, for errors.
    """

    ids: tuple[int, ...]
    learnt: tuple[tuple[int, int], ...]
    images: tuple[ImageSource, ...]
    place: str

    @property
    def answer_tokens(self) -> int:
        """How many tokens are learnt."""
        return sum(stop - start for start, stop in self.learnt)


def encode(
    conversation: Conversation, processor: FastVlmProcessor, image_size: int | None = None, mask_prompt: bool = True
) -> Sample:
    """A conversation's ids, rendered by the checkpoint's template.

    Args:
        mask_prompt: learn the answers only; False learns everything but images and the first token.

    Raises:
        ValueError: the template fails, or shows an answer otherwise than the model would have to give it.
    """
    try:
        sample = _encode(conversation, processor, image_size)
    except ValueError as error:
        raise ValueError(f"{conversation.place}: {error}") from None
    return sample if mask_prompt else replace(sample, learnt=_words(sample.ids, processor.image_token_id))


def _words(ids: tuple[int, ...], image_token_id: int) -> tuple[tuple[int, int], ...]:
    """(start, stop) of each run of tokens that are no image's, without the first token, which nothing predicts."""
    is_word = [False, *(id != image_token_id for id in ids[1:]), False]
    borders = [i for i in range(1, len(is_word)) if is_word[i] != is_word[i - 1]]
    return tuple(zip(borders[::2], borders[1::2]))


def _encode(conversation: Conversation, processor: FastVlmProcessor, image_size: int | None) -> Sample:
    messages = [_with_ids(message, processor) for message in conversation.messages]
    ids = processor.encode_chat(messages, add_generation_prompt=False, image_size=image_size)
    placeholders = len(conversation.images) * processor.num_image_tokens(image_size)
    if ids.count(processor.image_token_id) != placeholders:
        raise ValueError("the chat template leaves out images; give another chat_template.")
    learnt = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = processor.encode_chat(messages[:turn], image_size=image_size)
        answer = list(message["content"].ids)
        start, stop = len(prompt), len(prompt) + len(answer)
        if ids[:stop] != prompt + answer or stop == len(ids) or ids[stop] not in processor.eos_token_ids:
            raise ValueError(
                "the chat template shows an answer differently from how the model would give it (it changes the "
                "assistant's texts, leaves out turns, or ends them without a token of its own); give another "
                "chat_template."
            )
        learnt.append((start, stop + 1))
    return Sample(tuple(ids), tuple(learnt), conversation.images, conversation.place)


def _with_ids(message: dict[str, Any], processor: FastVlmProcessor) -> dict[str, Any]:
    """An answer with its token ids; anything else as it is."""
    if message["role"] != "assistant":
        return message
    text = str(message["content"])
    ids = processor.encode_answer(text)
    if not ids:
        raise ValueError("an answer has no tokens, and nothing is learnt from it; change it.")
    return {**message, "content": AnswerText(text, ids)}


def encode_all(
    conversations: list[Conversation],
    processor: FastVlmProcessor,
    *,
    max_seq_length: int,
    image_size: int | None = None,
    mask_prompt: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Sample], list[Sample]]:
    """Samples of at most ``max_seq_length`` tokens, images included, and those that are longer; none is cut.

    Args:
        progress: is told how many conversations are done, and of how many.

    Raises:
        ValueError: as for :func:`encode`, and where all of several are too long.
    """
    samples = []
    for conversation in conversations:
        samples.append(encode(conversation, processor, image_size, mask_prompt))
        progress(len(samples), len(conversations))
    fitting = [sample for sample in samples if len(sample.ids) <= max_seq_length]
    if samples and not fitting:
        shortest = min(len(sample.ids) for sample in samples)
        raise ValueError(
            f"All {len(samples)} rows are longer than {max_seq_length} tokens (the shortest has {shortest}); raise "
            "--max-seq-length, or lower --image-size."
        )
    return fitting, [sample for sample in samples if len(sample.ids) > max_seq_length]


def images_of(samples: list[Sample]) -> list[ImageSource]:
    """Every source once, in the order in which they come."""
    return list(dict.fromkeys(chain.from_iterable(sample.images for sample in samples)))
