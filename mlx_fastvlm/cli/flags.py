"""The command-line flags that several commands share, and what their help says; named as the options are."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.weights import DTYPES
from ..errors import one_line
from ..files import read_text
from ..generation.options import GenerationOptions
from ..hub import find_checkpoint
from ..models.pretrained import load
from .sources import Images
from .terminal import printable

if TYPE_CHECKING:
    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.processor import FastVlmProcessor

DEFAULT_MODEL = "apple/FastVLM-0.5B"
LARGE = 300e6  # bytes that take long enough to read that people wonder
_DEFAULTS = GenerationOptions()

# Help of flags that commands add in ways of their own.
SOURCE = "a folder, a hub id, or demo, the built-in model"
DTYPE = "type of the weights (the checkpoint's; float32 on a CPU)"
REVISION = "branch, tag or commit of a hub id (main)"
FORCE = "load the model even if memory seems too small"
DEBUG = "show the traceback of an error"
Q_BITS = "bits per weight: 2, 3, 4, 5, 6 or 8"
Q_GROUP_SIZE = "weights per scale: 32, 64 or 128"


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("-m", "--model", default=DEFAULT_MODEL, metavar="SOURCE", help=SOURCE)
    group.add_argument("--dtype", choices=tuple(DTYPES), help=DTYPE)
    group.add_argument("--revision", help=REVISION)
    group.add_argument("--adapter-path", metavar="FOLDER", help="also load the adapters in this folder")
    group.add_argument("--force", action="store_true", help=FORCE)


def add_system_flag(group: argparse._ActionsContainer) -> None:
    group.add_argument("--system", "--system-prompt", metavar="TEXT", help="system prompt (the template's)")


def add_choices_flag(group: argparse._ActionsContainer, probabilities: str) -> None:
    group.add_argument(
        "--choices",
        dest="decide_among",
        type=choices,
        metavar="A,B",
        help=f"choose one of these answers; {probabilities}",
    )


def add_speed_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("speed")
    group.add_argument("--batch-size", type=int, default=16, metavar="N", help="answers to generate at once")
    group.add_argument(
        "--threads", type=int, default=4, metavar="N", help="threads that open images ahead of the model"
    )
    return group


def add_image_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("images")
    group.add_argument(
        "--image",
        action=Images,
        nargs="+",
        metavar="IMAGE",
        help="paths, patterns, URLs, data: URIs, or - for standard input",
    )
    add_pixel_flags(group)


def add_pixel_flags(group: argparse._ArgumentGroup) -> None:
    """How images become pixels, wherever they come from."""
    group.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="side to scale images to, a multiple of 64; smaller is faster but less accurate (the checkpoint's)",
    )
    group.add_argument(
        "--frames", type=int, default=1, metavar="N", help="frames to take from an animation (1, the first)"
    )
    group.add_argument(
        "--vision-batch-size",
        type=int,
        metavar="N",
        help="images per pass through the vision tower (1; more for small images)",
    )


def add_video_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("video")
    group.add_argument("--video", metavar="VIDEO", help="path or URL of a video; its frames come before the question")
    _number(group, "--fps", float, "frames to take per second of video")
    _number(group, "--max-frames", int, "most frames to take; longer videos are sampled more sparsely")


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    _number(group, "--max-tokens", int, "stop after this many tokens")
    _number(group, "--min-tokens", int, "don't let the model stop before this many tokens")
    _number(group, "--temperature", float, "0 always picks the likeliest token; higher values vary more", "--temp")
    _number(group, "--top-p", float, "sample from the likeliest tokens that add up to this probability")
    _number(group, "--top-k", int, "sample from this many of the likeliest tokens; 0 means all")
    _number(group, "--min-p", float, "sample from tokens at least this probable, relative to the likeliest")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text (random)")
    group.add_argument("--repetition-penalty", type=float, metavar="X", help="values above 1 discourage repetition")
    _number(group, "--repetition-context-size", int, "how many tokens back the repetition penalty looks")
    _number(group, "--presence-penalty", float, "subtract this from the logit of every token already in the answer")
    _number(group, "--frequency-penalty", float, "the same, once per occurrence")
    group.add_argument(
        "--logit-bias", type=_bias, action="append", metavar="ID:X", help="add X to the logit of token ID; repeatable"
    )
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before this text; repeatable")


def add_constraint_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("constraints on the answer (need the extra constraints)")
    group.add_argument("--json-schema", type=_content, metavar="FILE", help="JSON that follows the schema in this file")
    group.add_argument("--regex", metavar="PATTERN", help="text that fully matches this regular expression")
    group.add_argument(
        "--grammar", type=_content, metavar="FILE", help="text that follows the Lark grammar in this file"
    )


def add_cache_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("memory")
    group.add_argument(
        "--max-kv-size",
        type=int,
        metavar="TOKENS",
        help="limit the KV cache to this many tokens; the prompt is always kept (unlimited)",
    )
    group.add_argument("--kv-bits", type=int, metavar="N", help="quantize the KV cache to 4 or 8 bits (not quantized)")
    _number(group, "--kv-group-size", int, "values per scale in a quantized cache: 32, 64 or 128")
    _number(group, "--prefill-step-size", int, "read long prompts in chunks of this many tokens")
    return group


def load_chosen_model(arguments: argparse.Namespace) -> tuple[FastVlmForConditionalGeneration, FastVlmProcessor]:
    """The model that the flags name, and on stderr what its user should know while it loads."""
    folder = find_checkpoint(arguments.model, arguments.revision)
    quiet = getattr(arguments, "quiet", False) or getattr(arguments, "json", False)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if size > LARGE and not quiet:
        print(f"loading {printable(arguments.model)} ({size / 1e9:.1f} GB) ...", file=sys.stderr, flush=True)
    model, processor = load(folder, dtype=arguments.dtype, adapter_path=arguments.adapter_path, force=arguments.force)
    asked = processor.check_image_size(getattr(arguments, "image_size", None))
    trained = model.config.trained_image_sizes or [processor.image_settings.size]
    if asked not in trained and not quiet:
        sizes = ", ".join(map(str, trained))
        print(
            f"note: this checkpoint was trained on images of {sizes} pixels; at {asked} its answers may be worse.",
            file=sys.stderr,
        )
    return model, processor


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


def _number(group: argparse._ArgumentGroup, flag: str, kind: type, help: str, *aliases: str) -> None:
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
