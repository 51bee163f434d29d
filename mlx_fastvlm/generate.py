"""Pictures and a question in, a streamed answer out: the library's functions and the command line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from . import flags
from .answers import AnswerText
from .captions import caption_folder
from .cli import Parser, run, shown
from .decoding import check_finite, prefill, step
from .models.fastvlm import FastVlmForConditionalGeneration
from .models.threads import end_streams_with_thread
from .options import GenerationOptions
from .processing.images import ImageSource
from .processing.messages import Prompt
from .processing.processor import FastVlmProcessor
from .prompt_cache import PromptCache, load_prompt_cache, save_prompt_cache
from .request import Request, make_request
from .sampling import Choice, Chooser

DEFAULT_PROMPT = "Describe the image."


@dataclass
class GenerationResponse:
    """One step of an answer.

    Attributes:
        text: what this step adds to the answer; often a token's text, sometimes "" while a character is incomplete or
            a stop string may be beginning.
        token: the token's id.
        finish_reason: None until the last step; then "stop" (the model or a stop string ended the answer) or "length"
            (max_tokens).
        prompt_tokens: tokens of the prompt, those of the pictures included.
        cached_tokens: how many of them the prompt cache held already.
        prompt_tps: prompt tokens a second, prefill alone, without the cached ones.
        generation_tokens: tokens of the answer so far.
        generation_tps: tokens a second after the first.
        time_to_first_token: seconds from the call to the first token: pictures, vision tower and prefill.
        peak_memory: the most memory that MLX has used, in GB.
        logprob: the token's log-probability (natural logarithm), with the option ``logprobs``; None without.
    """

    text: str
    token: int
    finish_reason: str | None
    prompt_tokens: int
    cached_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    time_to_first_token: float
    peak_memory: float
    logprob: float | None = None


def generate(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompt: Prompt,
    image: ImageSource | list[ImageSource] | None = None,
    **options,
) -> str:
    """The whole answer; arguments and errors as for :func:`stream_generate`."""
    return "".join(response.text for response in stream_generate(model, processor, prompt, image, **options))


def stream_generate(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompt: Prompt,
    image: ImageSource | list[ImageSource] | None = None,
    **options,
) -> Iterator[GenerationResponse]:
    """Answer a prompt about pictures, token by token.

    Args:
        prompt: a question, or chat messages (see ``FastVlmProcessor.apply_chat_template``); messages may bring their
            own pictures, as in the OpenAI and transformers formats.
        image: a picture, several, or none; see :func:`mlx_fastvlm.load_image` for what can be one. They go where the
            prompt has ``<image>`` marks (in messages: or parts), and without marks before the first question.
        options: see :class:`mlx_fastvlm.GenerationOptions`.

    Raises:
        ValueError, OSError: for a bad argument or picture, before anything runs.
    """
    chosen = GenerationOptions(**options)
    chosen.check(model)
    cache = chosen.prompt_cache
    if cache is None:
        cache = PromptCache(chosen.max_kv_size, chosen.kv_bits, chosen.kv_group_size)
    start = time.perf_counter()
    request = make_request(processor, prompt, image, chosen)
    request.check(model, bounded=cache.max_kv_size is not None)
    cache.check(model, request.tokens)
    return _stream(model, processor, request, cache, chosen, start)


def _stream(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    request: Request,
    cache: PromptCache,
    options: GenerationOptions,
    start: float,
) -> Iterator[GenerationResponse]:
    """Prefill, then decode, the next token always computing while the caller handles this one."""
    end_streams_with_thread()
    tokens = request.tokens
    cached = cache.begin(model, tokens)
    features = request.features(model, processor, options, skip=cached)
    prefill_start = time.perf_counter()
    embeddings = model.embed(mx.array([request.ids[cached:]]), features)
    choose = Chooser(options, request.text_ids)
    answer = AnswerText(processor, options.stop_strings)

    def ahead(logits: mx.array) -> Choice:
        choice = choose(logits)
        mx.async_eval(*choice.arrays)
        return choice

    with cache.growing(tokens) as layers:
        upcoming = ahead(prefill(model, embeddings, layers, options.prefill_step_size, options.progress))
    for count in range(1, options.max_tokens + 1):
        choice = upcoming
        if count < options.max_tokens:
            with cache.growing(tokens) as layers:
                upcoming = ahead(step(model, choice.token, layers))
        token: Any = choice.token.item()
        largest: Any = choice.largest.item()
        logprob: Any = None if choice.logprob is None else choice.logprob.item()
        check_finite(largest, model, bool(options.logits_processors))
        tokens.append(token)
        now = time.perf_counter()
        if count == 1:
            first = now
        text = answer.add(token)
        last = answer.ended or count == options.max_tokens
        if last:
            text += answer.finish()
        yield GenerationResponse(
            text=text,
            token=token,
            finish_reason="stop" if answer.ended else "length" if last else None,
            prompt_tokens=len(request.ids),
            cached_tokens=cached,
            prompt_tps=(len(request.ids) - cached) / (first - prefill_start),
            generation_tokens=count,
            generation_tps=(count - 1) / (now - first) if count > 1 else 0.0,
            time_to_first_token=first - start,
            peak_memory=mx.get_peak_memory() / 1e9,
            logprob=logprob,
        )
        if last:
            return
        if count % 256 == 0:
            mx.clear_cache()  # buffers that outgrown caches left behind


def parser() -> argparse.ArgumentParser:
    """The command line of ``python -m mlx_fastvlm.generate``."""
    parser = Parser(
        prog="fastvlm",
        description="Ask FastVLM about pictures. The answer streams to stdout, everything else goes to stderr.",
        epilog='example: python -m mlx_fastvlm.generate --image photo.jpg --prompt "What is this?"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    asking = parser.add_argument_group("question")
    asking.add_argument(
        "--prompt",
        default=DEFAULT_PROMPT,
        metavar="TEXT",
        help="the question, or - for standard input; <image> in it places a picture",
    )
    asking.add_argument("--system", metavar="TEXT", help="a system prompt instead of the template's own")
    flags.add_picture_flags(parser)
    flags.add_model_flags(parser)
    flags.add_sampling_flags(parser)
    flags.add_cache_flags(parser).add_argument(
        "--prompt-cache", metavar="FILE", help="go on from this prompt cache; written if there is none"
    )
    folder = parser.add_argument_group("a folder of pictures")
    folder.add_argument("--images-dir", metavar="DIR", help="ask about every picture in it; goes on where it stopped")
    folder.add_argument("--output", metavar="FILE", help="a JSON line for each picture goes here")
    folder.add_argument("--batch-size", type=int, default=16, metavar="N", help="pictures at a time (16)")
    printing = parser.add_argument_group("output")
    printing.add_argument("--json", action="store_true", help="print one JSON object with the text and the statistics")
    printing.add_argument("--logprobs", action="store_true", help="with --json, each token's log-probability")
    printing.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _check_flags(parser: argparse.ArgumentParser, arguments: argparse.Namespace):
    """Flags that only make sense together."""
    if (arguments.images_dir is None) != (arguments.output is None):
        parser.error("--images-dir and --output go together: a folder of pictures, and the file for the answers")
    if arguments.images_dir and (arguments.image or arguments.json or arguments.prompt_cache):
        parser.error("--images-dir goes without --image, --json and --prompt-cache")
    if arguments.logprobs and not arguments.json:
        parser.error("--logprobs needs --json")
    if [arguments.prompt, *(arguments.image or [])].count("-") > 1:
        parser.error("standard input can only be read once: as --prompt or as one --image")


def _answer(arguments: argparse.Namespace):
    """Run the command; raises what the library raises."""
    options = flags.options(arguments)
    file = options.pop("prompt_cache")
    GenerationOptions(**options)  # what is wrong with the options is told before the model loads
    prompt = _read_prompt(arguments.prompt)
    model, processor = flags.load_chosen_model(arguments)
    if arguments.images_dir:
        return _caption(model, processor, prompt, arguments, options)
    if file:
        options["prompt_cache"] = _open_cache(file, model, options)
    text, tokens, last = "", [], None
    try:
        for last in stream_generate(model, processor, prompt, arguments.image, **options):
            text += last.text
            tokens.append({"token": last.token, "logprob": last.logprob})
            if not arguments.json:
                print(shown(last.text), end="", flush=True)
    finally:  # also after Ctrl-C
        if last and not arguments.json:
            print(flush=True)
            print(statistics(last), file=sys.stderr)
    if file and not Path(file).exists():
        save_prompt_cache(file, options["prompt_cache"])
    if arguments.json:
        assert last is not None  # max_tokens is at least 1
        answer = {key: value for key, value in asdict(last).items() if key not in ("token", "logprob")}
        answer["text"] = text
        if arguments.logprobs:
            answer["tokens"] = tokens
        print(json.dumps(answer, ensure_ascii=False))


def _read_prompt(prompt: str) -> str:
    """The prompt, from standard input for "-"."""
    if prompt == "-":
        try:
            prompt = sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"The prompt on standard input is not UTF-8 ({error.reason}); convert it first.") from None
    if not prompt.strip():
        raise ValueError("The prompt is empty; ask something.")
    return prompt


def _open_cache(file: str, model: FastVlmForConditionalGeneration, options: dict) -> PromptCache:
    """The prompt cache of a file, or a new one as the options want it, which then no longer say so."""
    policy = [options.pop(name) for name in ("max_kv_size", "kv_bits", "kv_group_size")]
    return load_prompt_cache(file, model) if Path(file).exists() else PromptCache(*policy)


def _caption(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompt: str,
    arguments: argparse.Namespace,
    options: dict,
):
    start = time.perf_counter()
    captioned, broken = caption_folder(
        model,
        processor,
        arguments.images_dir,
        arguments.output,
        prompt,
        batch_size=arguments.batch_size,
        **options,
    )
    seconds = time.perf_counter() - start
    print(f"{captioned} pictures captioned, {broken} not readable, {seconds:.1f} s", file=sys.stderr)


def statistics(last: GenerationResponse) -> str:
    """One line about an answer, from its last response."""
    cached = f" ({last.cached_tokens} cached)" if last.cached_tokens else ""
    return (
        f"prompt: {last.prompt_tokens} tokens{cached}, {last.prompt_tps:.1f} tokens/s | "
        f"answer: {last.generation_tokens} tokens, {last.generation_tps:.1f} tokens/s | "
        f"first token after {last.time_to_first_token:.2f} s | peak memory {last.peak_memory:.2f} GB"
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m mlx_fastvlm.generate`` and of ``fastvlm``."""
    command = parser()
    arguments = command.parse_args(argv)
    _check_flags(command, arguments)
    return run(lambda: _answer(arguments), debug=arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
