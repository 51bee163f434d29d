"""``python -m mlx_fastvlm.generate``: images and a question in, a streamed answer out."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from .cache.prompt import PromptCache, load_prompt_cache, save_prompt_cache
from .cli import flags
from .cli.parser import Parser, run
from .cli.terminal import shown, statistics
from .generation.api import stream_generate
from .generation.captions import caption_folder
from .generation.options import GenerationOptions
from .models.fastvlm import FastVlmForConditionalGeneration
from .processing.processor import FastVlmProcessor

DEFAULT_PROMPT = "Describe the image."


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


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m mlx_fastvlm.generate`` and of ``fastvlm``."""
    command = parser()
    arguments = command.parse_args(argv)
    _check_flags(command, arguments)
    return run(lambda: _answer(arguments), debug=arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
