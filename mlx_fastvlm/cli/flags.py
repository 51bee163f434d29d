"""The command-line flags of generation, named as the options are; ``generate`` and ``chat`` share them."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.weights import DTYPES
from ..errors import one_line
from ..files import read_text
from ..generation.options import GenerationOptions
from ..models.pretrained import load

if TYPE_CHECKING:
    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.processor import FastVlmProcessor

DEFAULT_MODEL = "apple/FastVLM-0.5B"
_DEFAULTS = GenerationOptions()


def add_model_flags(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("model")
    group.add_argument("--model", default=DEFAULT_MODEL, metavar="SOURCE", help="a folder, a hub id, or demo")
    group.add_argument("--dtype", choices=tuple(DTYPES), help="type of the weights")
    group.add_argument("--revision", help="branch, tag or commit of a hub id")
    group.add_argument("--adapter-path", metavar="FOLDER", help="with the adapters that lora wrote to this folder")
    group.add_argument("--force", action="store_true", help="load it even if memory seems too small")


def add_image_flags(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("images")
    group.add_argument(
        "--image", action="append", metavar="IMAGE", help="a path, URL, data: URI, or - for standard input; repeats"
    )
    add_pixel_flags(group)


def add_pixel_flags(group: argparse._ArgumentGroup):
    """How images become pixels, wherever they come from."""
    group.add_argument("--image-size", type=int, metavar="PIXELS", help="a multiple of 64; less is faster")
    group.add_argument("--frames", type=int, default=1, metavar="N", help="frames of an animation (1, the first)")
    group.add_argument(
        "--vision-batch-size",
        type=int,
        metavar="N",
        help="images that go through the vision tower at a time (several only of small ones)",
    )


def add_video_flags(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("video")
    group.add_argument("--video", metavar="FILM", help="a path or URL of a film; its frames go before the question")
    _number(group, "--fps", float, "frames a second that are taken of it")
    _number(group, "--max-frames", int, "at most so many frames; of a longer film they are further apart")


def add_sampling_flags(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("sampling")
    _number(group, "--max-tokens", int, "the longest answer")
    _number(group, "--min-tokens", int, "the model can't end the answer before")
    _number(group, "--temperature", float, "0 takes the likeliest token", "--temp")
    _number(group, "--top-p", float, "sample among tokens of this total probability")
    _number(group, "--top-k", int, "sample among this many tokens; 0 is all")
    _number(group, "--min-p", float, "least probability relative to the likeliest token")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    group.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1 discourages repetition")
    _number(group, "--repetition-context-size", int, "tokens that the penalty looks back")
    _number(group, "--presence-penalty", float, "taken off the logit of a token that the answer has already")
    _number(group, "--frequency-penalty", float, "the same for each time that it has it")
    group.add_argument(
        "--logit-bias", type=_bias, action="append", metavar="ID:X", help="add X to the logit of token ID; repeats"
    )
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before this text; repeats")


def add_constraint_flags(parser: argparse.ArgumentParser):
    group = parser.add_argument_group("what the answer must be (needs the extra constraints)")
    group.add_argument(
        "--json-schema", type=_content, metavar="FILE", help="JSON that keeps to the schema in this file"
    )
    group.add_argument("--regex", metavar="PATTERN", help="text that matches this regular expression as a whole")
    group.add_argument(
        "--grammar", type=_content, metavar="FILE", help="text that keeps to the lark grammar in this file"
    )


def add_cache_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("memory")
    group.add_argument("--max-kv-size", type=int, metavar="TOKENS", help="bound on cached tokens; the prompt stays")
    group.add_argument("--kv-bits", type=int, metavar="N", help="quantize the KV cache to 4 or 8 bits")
    _number(group, "--kv-group-size", int, "values that share a scale in it: 32, 64 or 128")
    _number(group, "--prefill-step-size", int, "read longer prompts in pieces of so many tokens")
    return group


def load_chosen_model(arguments: argparse.Namespace) -> tuple[FastVlmForConditionalGeneration, FastVlmProcessor]:
    """The model that the flags name."""
    return load(
        arguments.model,
        dtype=arguments.dtype,
        revision=arguments.revision,
        adapter_path=arguments.adapter_path,
        force=arguments.force,
    )


def options(arguments: argparse.Namespace) -> GenerationOptions:
    """The options of generation that the parsed flags give; ``UsageError`` for a value that can't be."""
    names = {field.name for field in fields(GenerationOptions)}
    chosen: dict[str, Any] = {name: value for name, value in vars(arguments).items() if name in names}
    if chosen["logit_bias"]:
        chosen["logit_bias"] = dict(chosen["logit_bias"])
    return GenerationOptions(**chosen)


def choices(text: str) -> list[str]:
    """The answers that ``--choices`` lists."""
    return [choice.strip() for choice in text.split(",")]


def _number(group, flag: str, kind: type, help: str, *aliases: str):
    default = getattr(_DEFAULTS, flag.removeprefix("--").replace("-", "_"))
    group.add_argument(flag, *aliases, type=kind, default=default, metavar="N", help=f"{help} ({default})")


def _content(file: str) -> str:
    """The text of a file that a flag names."""
    try:
        return read_text(Path(file))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(one_line(str(error))) from None


def _bias(text: str) -> tuple[int, float]:
    id, colon, bias = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"must look like 42:-1.5, got {text!r}")
    try:
        return int(id), float(bias)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must look like 42:-1.5, got {text!r}") from None
