"""``python -m mlx_fastvlm.generate``: images and a question in, a streamed answer out."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cache.policy import CachePolicy
from .cache.prompt import PromptCache
from .cache.prompt_file import load_prompt_cache, save_prompt_cache
from .cli import flags, launched
from .cli.parser import Parser, run
from .cli.sources import expanded, sort_words
from .cli.terminal import CUT, printable, shown, statistics
from .errors import UsageError
from .files import SIZE_LIMIT, json_line
from .generation.api import stream_answers
from .generation.decision import decide, decision_options
from .models.sharding import load_share

if TYPE_CHECKING:
    import mlx.core as mx

    from .generation.answer import GenerationResponse
    from .generation.api import Responses
    from .generation.decision import DecisionOptions
    from .generation.options import GenerationOptions
    from .models.fastvlm import FastVlmForConditionalGeneration
    from .processing.processor import FastVlmProcessor

DEFAULT_PROMPT = "Describe the image."


def parser() -> argparse.ArgumentParser:
    """The command line of ``python -m mlx_fastvlm.generate``."""
    parser = Parser(
        prog="fastvlm",
        description="Ask FastVLM about images. The answer streams to stdout; everything else goes to stderr.",
        usage="fastvlm [IMAGE ...] [QUESTION] [FLAGS]; --help lists them",
        epilog='example: fastvlm photo.jpg "What is this?"',
    )
    parser.add_argument("words", nargs="*", metavar="IMAGE, QUESTION", help="images, and the question about them")
    asking = parser.add_argument_group("question")
    asking.add_argument(
        "-p",
        "--prompt",
        metavar="TEXT",
        help=f"the question, or - for standard input; <image> marks where an image goes ({DEFAULT_PROMPT!r})",
    )
    flags.add_system_flag(asking)
    asking.add_argument("--n", type=int, default=1, metavar="N", help="number of answers; the prompt is read once")
    flags.add_choices_flag(asking, "their probabilities go to stderr")
    flags.add_image_flags(parser)
    flags.add_video_flags(parser)
    flags.add_model_flags(parser)
    flags.add_sampling_flags(parser)
    flags.add_constraint_flags(parser)
    flags.add_cache_flags(parser).add_argument(
        "--prompt-cache",
        "--prompt-cache-file",
        dest="cache_file",
        metavar="FILE",
        help="continue from this prompt cache, or create it if there is none",
    )
    printing = parser.add_argument_group("output")
    printing.add_argument("--json", action="store_true", help="print each answer as a JSON object, with statistics")
    printing.add_argument("--logprobs", action="store_true", help="with --json, print each token's log probability")
    printing.add_argument(
        "--top-logprobs",
        type=int,
        default=0,
        metavar="N",
        help="with --json, print the N likeliest tokens at each step",
    )
    printing.add_argument("-q", "--quiet", action="store_true", help="print only the answer, no notes or statistics")
    printing.add_argument(
        "--verbose", action="store_true", help="also print which model was loaded and how it reads images"
    )
    printing.add_argument("--debug", action="store_true", help=flags.DEBUG)
    return parser


def _check_flags(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Flags that only make sense together; words become images and the question."""
    sort_words(parser, arguments, arguments.words)
    if arguments.cache_file == "":
        parser.error("--prompt-cache is empty; give a path")
    if arguments.n < 1:
        parser.error(f"--n must be at least 1, got {arguments.n}")
    if arguments.n > 1 and arguments.cache_file:
        parser.error("--n can't be combined with --prompt-cache")
    if arguments.decide_among and (arguments.cache_file or arguments.n > 1):
        parser.error("--choices can't be combined with --prompt-cache or --n")
    for flag, given in (("--logprobs", arguments.logprobs), ("--top-logprobs", arguments.top_logprobs)):
        if given and not arguments.json:
            parser.error(f"{flag} needs --json")
    if "MLX_RANK" in os.environ:
        launched.check_flags(parser, arguments)
    if arguments.prompt is None and not arguments.image and arguments.video is None:
        parser.print_usage(sys.stderr)
        parser.error("there is neither an image nor a question; give one, or both")
    if arguments.prompt is None:
        arguments.prompt = DEFAULT_PROMPT
    if [arguments.prompt, arguments.video, *(arguments.image or [])].count("-") > 1:
        parser.error("standard input can only be read once: as --prompt, as --video or as one --image")


def _run(arguments: argparse.Namespace) -> None:
    """Run the command; raises what the library raises."""
    options = flags.options(arguments)  # what is wrong with them is told before the model loads
    decision = decision_options(options) if arguments.decide_among else None
    prompt = _read_prompt(arguments.prompt)
    arguments.image = [file for word in arguments.image for file in expanded(word)]
    group = launched.group_of_launch()
    with launched.answering_once(group):
        if not arguments.image and arguments.video is None and not (arguments.quiet or arguments.json):
            print("note: no image is given, so the answer comes from the text alone.", file=sys.stderr)
        model, processor = flags.load_chosen_model(arguments) if group is None else _load_share(arguments, group)
        if arguments.verbose:
            print(_described(arguments, model, processor), file=sys.stderr)
        if decision is not None:
            _decide(model, processor, prompt, arguments, decision)
        else:
            _answer(model, processor, prompt, arguments, options)


def _load_share(
    arguments: argparse.Namespace, group: mx.distributed.Group
) -> tuple[FastVlmForConditionalGeneration, FastVlmProcessor]:
    """This process's share of the model that the flags name."""
    launched.draw_alike(group)
    names = ("dtype", "revision", "adapter_path", "force")
    return load_share(arguments.model, group, **{name: getattr(arguments, name) for name in names})


def _described(
    arguments: argparse.Namespace, model: FastVlmForConditionalGeneration, processor: FastVlmProcessor
) -> str:
    """One line about the model and what it makes of images."""
    size = processor.check_image_size(arguments.image_size)
    dtype = str(model.dtype).removeprefix("mlx.core.")
    return (
        f"model: {printable(arguments.model)}, {model.num_parameters() / 1e6:.1f} million parameters, {dtype} | "
        f"images: {len(arguments.image)}, {processor.image_settings.aspect_ratio} to {size} x {size} pixels, "
        f"{processor.num_image_tokens(size)} tokens each"
    )


def _answer(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompt: str,
    arguments: argparse.Namespace,
    options: GenerationOptions,
) -> None:
    file = arguments.cache_file
    if file:
        cache = _open_cache(file, model, options.cache_policy)
        options = replace(options, prompt_cache=cache, max_kv_size=None, kv_bits=None)
    for responses in stream_answers(model, processor, prompt, arguments.image, options, arguments.n):
        reason = _print(responses, arguments, tokens=bool(options.logprobs or options.top_logprobs))
        options.warn_of_cut(reason)
    if file and not Path(file).exists():
        save_prompt_cache(file, cache)


def _decide(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    prompt: str,
    arguments: argparse.Namespace,
    options: DecisionOptions,
) -> None:
    found = decide(model, processor, prompt, arguments.image, choices=arguments.decide_among, **options)
    if arguments.json:
        print(json_line(asdict(found)))
    else:
        print(shown(found.choice))
        for choice, probability in found.probabilities.items():
            print(f"{probability:8.2%}  {shown(choice)}", file=sys.stderr)


def _print(responses: Responses, arguments: argparse.Namespace, tokens: bool) -> str | None:
    """An answer as it comes, and its statistics; or as a JSON object when it is whole. Returns how it ended."""
    as_json, text, each, last = arguments.json, "", [], None
    try:
        for last in responses:
            text += last.text
            each.append(_token(last))
            if not as_json:
                print(shown(last.text), end="", flush=True)
    finally:  # also after Ctrl-C
        if last and not as_json:
            print(flush=True)
            if told := CUT * (last.finish_reason == "length") if arguments.quiet else statistics(last):
                print(told, file=sys.stderr)
    assert last is not None  # max_tokens is at least 1
    if as_json:
        answer = {key: value for key, value in asdict(last).items() if key not in ("token", "logprob", "top_logprobs")}
        answer["text"] = text
        if tokens:
            answer["tokens"] = each
        print(json_line(answer))
    return last.finish_reason


def _token(response: GenerationResponse) -> dict[str, Any]:
    """A token's part of the JSON object."""
    token: dict[str, Any] = {"token": response.token, "logprob": response.logprob}
    if response.top_logprobs is not None:
        token["top_logprobs"] = [asdict(alternative) for alternative in response.top_logprobs]
    return token


def _read_prompt(prompt: str) -> str:
    """The prompt, from standard input for "-"."""
    if prompt == "-":
        try:
            data = sys.stdin.buffer.read(SIZE_LIMIT + 1)  # and no more, of what might never end
            if len(data) > SIZE_LIMIT:
                raise ValueError(f"The prompt on standard input is larger than {SIZE_LIMIT >> 20} MB; shorten it.")
            prompt = data.decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"The prompt on standard input is not UTF-8 ({error.reason}); convert it first.") from None
    if not prompt.strip():
        raise ValueError("The prompt is empty; ask something.")
    return prompt


def _open_cache(file: str, model: FastVlmForConditionalGeneration, policy: CachePolicy) -> PromptCache:
    """The prompt cache of a file, or a new one."""
    if not Path(file).exists():
        return PromptCache.from_policy(policy)
    cache = load_prompt_cache(file, model)
    if policy not in (CachePolicy(), cache.policy):
        raise UsageError(f"{file} was made with {cache.policy}, which can't change; leave out the KV cache's flags.")
    return cache


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m mlx_fastvlm.generate`` and of ``fastvlm``."""
    command = parser()
    arguments = command.parse_args(argv)
    _check_flags(command, arguments)
    return run(lambda: _run(arguments), debug=arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
