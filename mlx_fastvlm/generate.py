"""Pictures and a question in, a streamed answer out: the library's functions and the command line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import mlx.core as mx

from .cache import make_cache
from .checkpoint import DTYPES, load
from .cli import run
from .images import ImageSource
from .model import FastVlmForConditionalGeneration
from .processing import FastVlmProcessor, Messages, check_marks, user_message

DEFAULT_MODEL = "apple/FastVLM-0.5B"
DEFAULT_PROMPT = "Describe the image."

Sampler = Callable[[mx.array], mx.array]  # logits (1, vocabulary) -> token ids (1,)
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]  # tokens so far, logits (1, vocabulary) -> logits


@dataclass
class GenerationResponse:
    """One step of an answer.

    Attributes:
        text: what this step adds to the answer; often a token's text, sometimes "" while a character is incomplete.
        token: the token's id.
        finish_reason: None until the last step; then "stop" (the model ended its answer) or "length" (max_tokens).
        prompt_tokens: tokens of the prompt, those of the pictures included.
        prompt_tps: prompt tokens a second, prefill alone.
        generation_tokens: tokens of the answer so far.
        generation_tps: tokens a second after the first.
        time_to_first_token: seconds from the call to the first token: pictures, vision tower and prefill.
        peak_memory: the most memory that MLX has used, in GB.
    """

    text: str
    token: int
    finish_reason: str | None
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    time_to_first_token: float
    peak_memory: float


def generate(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompt: str | Messages,
    image: ImageSource | list[ImageSource] | None = None,
    **options,
) -> str:
    """The whole answer; arguments and errors as for :func:`stream_generate`."""
    return "".join(response.text for response in stream_generate(model, processor, prompt, image, **options))


def stream_generate(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompt: str | Messages,
    image: ImageSource | list[ImageSource] | None = None,
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int | None = None,
    repetition_penalty: float | None = None,
    repetition_context_size: int = 20,
    logits_processors: list[LogitsProcessor] | None = None,
    system: str | None = None,
    image_size: int | None = None,
    max_kv_size: int | None = None,
) -> Iterator[GenerationResponse]:
    """Answer a prompt about pictures, token by token.

    Args:
        prompt: a question, or chat messages (see ``FastVlmProcessor.apply_chat_template``). Pictures go before the
            question, or where it has ``<image>`` marks; in messages, before the first user's turn.
        image: a picture, several, or none; see :func:`mlx_fastvlm.load_image` for what can be one.
        max_tokens: the longest answer, in tokens.
        temperature: 0 takes the likeliest token; higher values sample more freely.
        top_p, top_k, min_p: sample only among the likeliest tokens: of this total probability, this many, or at least
            this probability relative to the likeliest. 1, 0 and 0 leave all in.
        seed: for sampling; the same seed gives the same text.
        repetition_penalty: above 1, makes the last ``repetition_context_size`` tokens less likely to come again.
        logits_processors: functions of (tokens so far, logits) that return changed logits, as in mlx-lm.
        system: a system prompt instead of the template's own.
        image_size: side of the square that pictures are scaled to, in pixels, a multiple of 64.
        max_kv_size: bounds the KV cache to so many tokens; the whole prompt always stays in it.

    Raises:
        ValueError, OSError: for a bad argument or picture, before anything runs.
    """
    start = time.perf_counter()
    _check(
        (max_tokens >= 1, "max_tokens must be at least 1", max_tokens),
        (temperature >= 0, "temperature must be at least 0", temperature),
        (0 < top_p <= 1, "top_p must be above 0 and at most 1", top_p),
        (top_k >= 0, "top_k must be at least 0", top_k),
        (0 <= min_p <= 1, "min_p must lie between 0 and 1", min_p),
        (
            repetition_penalty is None or repetition_penalty > 0,
            "repetition_penalty must be above 0",
            repetition_penalty,
        ),
        (repetition_context_size >= 1, "repetition_context_size must be at least 1", repetition_context_size),
    )
    images = [] if image is None else list(image) if isinstance(image, (list, tuple)) else [image]
    messages = as_messages(prompt, len(images), system)
    ids = processor.encode_chat(messages, image_size=image_size)
    check_marks(ids.count(processor.image_token_id) // processor.num_image_tokens(image_size), len(images))
    cache = make_cache(model, max_kv_size, keep=len(ids))
    # One picture at a time through the tower: its memory does not grow with their number.
    pixels = [processor.preprocess(one, image_size) for one in images]
    sampler = _make_sampler(temperature, top_p, top_k, min_p)
    processors = _make_processors(repetition_penalty, repetition_context_size) + (logits_processors or [])
    if seed is not None:
        mx.random.seed(seed)
    steps = _steps(model, ids, pixels, cache, sampler, processors, max_tokens)
    return _responses(steps, processor, len(ids), max_tokens, start)


def as_messages(prompt: str | Messages, images: int, system: str | None) -> Messages:
    """The prompt as chat messages, with a mark for each picture."""
    if isinstance(prompt, str):
        return user_message(prompt, images, system)
    if not prompt:
        raise ValueError("There are no messages; give at least one.")
    messages = [dict(message) for message in prompt]
    if system is not None:
        if messages[0].get("role") == "system":
            raise ValueError("The messages begin with a system prompt already; leave out the option system.")
        messages.insert(0, {"role": "system", "content": system})
    first = next((message for message in messages if message.get("role") == "user"), None)
    marked = any(
        "<image>" in content if isinstance(content, str) else any(part.get("type") == "image" for part in content)
        for content in (message.get("content", "") for message in messages)
    )
    if images and first is not None and not marked:
        content = first["content"]
        pictures = [{"type": "image"}] * images
        first["content"] = "<image>\n" * images + content if isinstance(content, str) else pictures + content
    return messages


@dataclass
class _Step:
    """A token and when it was known, in seconds since the prefill began."""

    token: int
    elapsed: float


def _steps(
    model: FastVlmForConditionalGeneration,
    ids: list[int],
    pixels: list[mx.array],
    cache: list,
    sampler: Sampler,
    processors: list[LogitsProcessor],
    max_tokens: int,
) -> Iterator[_Step]:
    """Prefill in one pass, then decode, the next token always computing while the caller handles this one."""
    features = None
    if pixels:
        encoded = []
        for picture in pixels:
            encoded.append(model.get_image_features(picture))
            mx.eval(encoded[-1])
        features = mx.concatenate(encoded)
    start = time.perf_counter()
    tokens = mx.array(ids)

    def logits_after(embeddings: mx.array) -> mx.array:
        hidden = model.language_model(embeddings, cache=cache).last_hidden_state
        return model.logits(hidden[:, -1])  # the head on the last row only

    def choose(logits: mx.array) -> mx.array:
        nonlocal tokens
        for process in processors:
            logits = process(tokens, logits)
        token = sampler(logits)
        if processors:
            tokens = mx.concatenate([tokens, token])
        mx.async_eval(token)
        return token

    logits = logits_after(model.embed(tokens[None], features))
    if not mx.isfinite(logits).all():
        raise ValueError("The model computes values that are not finite; its weights are broken: convert them again.")
    token = choose(logits)
    for produced in range(1, max_tokens + 1):
        upcoming = None
        if produced < max_tokens:
            upcoming = choose(logits_after(model.get_input_embeddings()(token[None])))
        yield _Step(token.item(), time.perf_counter() - start)
        token = upcoming


def _responses(
    steps: Iterator[_Step], processor: FastVlmProcessor, prompt_tokens: int, max_tokens: int, start: float
) -> Iterator[GenerationResponse]:
    """Tokens -> text and statistics."""
    detokenizer = processor.detokenizer()
    first = None
    for count, step in enumerate(steps, 1):
        if first is None:
            first, to_first = step.elapsed, time.perf_counter() - start
        ended = step.token in processor.eos_token_ids
        reason = "stop" if ended else "length" if count == max_tokens else None
        text = "" if ended else detokenizer.add(step.token)
        if reason:
            text += detokenizer.finish()
        yield GenerationResponse(
            text,
            step.token,
            reason,
            prompt_tokens,
            prompt_tokens / first,
            count,
            (count - 1) / (step.elapsed - first) if count > 1 else 0.0,
            to_first,
            mx.get_peak_memory() / 1e9,
        )
        if reason:
            return


def _make_sampler(temperature: float, top_p: float, top_k: int, min_p: float) -> Sampler:
    """Logits (1, vocabulary) -> a token id (1,). Greedy needs no normalisation, and none is computed."""
    if temperature == 0:
        return lambda logits: mx.argmax(logits, axis=-1)
    from mlx_lm.sample_utils import make_sampler

    sample = make_sampler(temp=temperature, top_p=top_p if top_p < 1 else 0.0, top_k=top_k, min_p=min_p)
    return lambda logits: sample(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def _make_processors(repetition_penalty: float | None, context_size: int) -> list[LogitsProcessor]:
    if repetition_penalty is None:
        return []
    from mlx_lm.sample_utils import make_logits_processors

    return make_logits_processors(repetition_penalty=repetition_penalty, repetition_context_size=context_size)


def _check(*conditions: tuple[bool, str, object]):
    for holds, sentence, value in conditions:
        if not holds:
            raise ValueError(f"{sentence}, got {value}.")


def parser() -> argparse.ArgumentParser:
    """The command line of ``python -m mlx_fastvlm.generate``."""
    parser = argparse.ArgumentParser(
        prog="fastvlm",
        description="Ask FastVLM about pictures. The answer streams to stdout, everything else goes to stderr.",
        epilog='example: python -m mlx_fastvlm.generate --image photo.jpg --prompt "What is this?"',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    common = parser.add_argument_group("what to ask")
    common.add_argument("--model", default=DEFAULT_MODEL, help='a folder, a hub id, or "demo", the small embedded one')
    common.add_argument(
        "--image", action="append", default=None, metavar="PICTURE", help="a path, URL, data: URI or -; repeats"
    )
    common.add_argument("--prompt", default=DEFAULT_PROMPT, help="the question; <image> in it places a picture")
    common.add_argument("--system", default=None, help="a system prompt instead of the template's own")
    common.add_argument("--image-size", type=int, metavar="PIXELS", help="a multiple of 64; less is faster")

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--max-tokens", type=int, default=256, help="the longest answer")
    sampling.add_argument("--temperature", "--temp", type=float, default=0.0, help="0 takes the likeliest token")
    sampling.add_argument("--top-p", type=float, default=1.0, help="sample among tokens of this total probability")
    sampling.add_argument("--top-k", type=int, default=0, help="sample among this many tokens; 0 is all")
    sampling.add_argument("--min-p", type=float, default=0.0, help="least probability relative to the likeliest token")
    sampling.add_argument("--seed", type=int, default=None, help="the same seed gives the same text")
    sampling.add_argument("--repetition-penalty", type=float, default=None, help="above 1 discourages repetition")
    sampling.add_argument("--repetition-context-size", type=int, default=20, help="tokens that the penalty looks back")

    running = parser.add_argument_group("running")
    running.add_argument("--max-kv-size", type=int, default=None, help="bound on cached tokens; the prompt stays")
    running.add_argument("--dtype", choices=tuple(DTYPES), help="type of the weights")
    running.add_argument("--revision", default=None, help="branch, tag or commit of a hub id")
    running.add_argument("--json", action="store_true", help="print one JSON object with the text and the statistics")
    running.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


_NOT_GENERATION = ("model", "image", "prompt", "dtype", "revision", "json", "debug")


def _answer(arguments: argparse.Namespace):
    """Run the command; raises what the library raises."""
    model, processor = load(arguments.model, dtype=arguments.dtype, revision=arguments.revision)
    options = {name: value for name, value in vars(arguments).items() if name not in _NOT_GENERATION}
    text, last = "", None
    try:
        for last in stream_generate(model, processor, arguments.prompt, arguments.image, **options):
            text += last.text
            if not arguments.json:
                print(last.text, end="", flush=True)
    finally:
        if last and not arguments.json:
            print(flush=True)
            print(_statistics(last), file=sys.stderr)
    if arguments.json:
        statistics = {key: value for key, value in asdict(last).items() if key != "token"}
        print(json.dumps({**statistics, "text": text}, ensure_ascii=False))


def _statistics(last: GenerationResponse) -> str:
    return (
        f"prompt: {last.prompt_tokens} tokens, {last.prompt_tps:.1f} tokens/s | "
        f"answer: {last.generation_tokens} tokens, {last.generation_tps:.1f} tokens/s | "
        f"first token after {last.time_to_first_token:.2f} s | peak memory {last.peak_memory:.2f} GB"
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m mlx_fastvlm.generate`` and of ``fastvlm``."""
    arguments = parser().parse_args(argv)
    return run(lambda: _answer(arguments), debug=arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
