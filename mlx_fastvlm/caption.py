"""``python -m mlx_fastvlm.caption``: data sets of images in, a record for each out."""

from __future__ import annotations

import argparse
import signal
import sys
import warnings

from .cli import flags
from .cli.parser import SOME_FAILED, Parser, run
from .cli.progress import DatasetProgress
from .data.shards import read_shard, shard_of_launch
from .data.sinks import Destination
from .files import json_line
from .generation.dataset import Job, Summary, as_dict, write_records
from .generation.decision import decision_options


def parser() -> argparse.ArgumentParser:
    """The command line of ``python -m mlx_fastvlm.caption``."""
    parser = Parser(
        prog="fastvlm caption",
        description="Ask FastVLM about every image in a data set, and write a record for each. To continue after an "
        "interruption, run the command again. The exit code is 3 if some records are errors.",
        epilog='example: fastvlm caption photos --output captions.jsonl --prompt "Describe the image."',
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="folders, patterns, .tar, .parquet, .jsonl or .csv files, or - for a list on standard input",
    )
    _add_record_flags(parser)
    asking = parser.add_argument_group("question")
    asking.add_argument(
        "-p", "--prompt", default="Describe the image.", metavar="TEXT", help="prompt for every image without its own"
    )
    flags.add_system_flag(asking)
    flags.add_choices_flag(asking, "records hold their probabilities")
    flags.add_pixel_flags(parser.add_argument_group("images"))
    flags.add_model_flags(parser)
    flags.add_sampling_flags(parser)
    flags.add_constraint_flags(parser)
    flags.add_cache_flags(parser)
    speed = flags.add_speed_flags(parser)
    speed.add_argument("--dedupe", action="store_true", help="ask only once about images with the same pixels")
    speed.add_argument(
        "--shard", metavar="I/N", help="process only part I of N, counted from 0; mlx.launch sets this (everything)"
    )
    printing = parser.add_argument_group("messages")
    printing.add_argument("--quiet", action="store_true", help="show only errors, no progress or summary")
    printing.add_argument("--json", action="store_true", help="print the summary as a JSON object")
    printing.add_argument("--debug", action="store_true", help=flags.DEBUG)
    return parser


def _add_record_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("records")
    group.add_argument(
        "--output",
        required=True,
        metavar="DEST",
        help="a .jsonl, .parquet or .tar file, .txt for a text file beside each image, or - for standard output",
    )
    group.add_argument(
        "--records-per-file", type=int, default=10_000, metavar="N", help="records per parquet or tar file"
    )
    group.add_argument("--overwrite", action="store_true", help="replace existing records")
    group.add_argument("--append-as", metavar="NAME", help="keep existing records, and add this run's under this name")
    group.add_argument("--retry-errors", action="store_true", help="ask again about images whose records are errors")


def _outlive_others() -> None:
    """mlx.launch ends all ranks as soon as one has failed or has records of errors; here none needs the others."""
    told = False

    def go_on(*_: object) -> None:
        nonlocal told
        if not told:
            print("another rank has ended with an error; this one continues, and Ctrl-C ends it", file=sys.stderr)
        told = True

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), go_on)


def _run(arguments: argparse.Namespace) -> int:
    """The command; its exit code."""
    summary = _ask(arguments)
    _print(summary, arguments)
    return SOME_FAILED if summary.errors or summary.failed_before or summary.duplicates else 0


def _ask(arguments: argparse.Namespace) -> Summary:
    options = flags.options(arguments)  # what is wrong with them is told before the model loads
    if arguments.decide_among:
        decision_options(options)
    destination = Destination(
        arguments.output,
        read_shard(arguments.shard) if arguments.shard else shard_of_launch(),
        arguments.append_as,
        arguments.overwrite,
        arguments.retry_errors,
        arguments.records_per_file,
    )
    if destination.shard.count > 1 and not arguments.shard:
        _outlive_others()
    job = Job(
        arguments.sources,
        destination,
        arguments.prompt,
        arguments.decide_among,
        arguments.batch_size,
        arguments.threads,
        arguments.dedupe,
    )
    model, processor = flags.load_chosen_model(arguments)
    with DatasetProgress(hidden=arguments.quiet) as progress:
        summary = write_records(model, processor, job, options, progress)
    if summary.duplicates:
        warnings.warn(
            f"{summary.duplicates} images have the key of an earlier one (the first is {summary.first_duplicate}); "
            "only the earlier ones were asked about.",
            stacklevel=1,
        )
    return summary


def _print(summary: Summary, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json_line(as_dict(summary)), file=sys.stderr if arguments.output == "-" else sys.stdout)
    elif not arguments.quiet:
        found = as_dict(summary)
        hits = f" ({summary.hits} by the same pixels)" if summary.hits else ""
        retry = f" ({summary.failed_before} errors; --retry-errors)" if summary.failed_before else ""
        skipped = f", {summary.skipped} done before{retry}" if summary.skipped else ""
        print(
            f"{summary.answered} images answered{hits}, {summary.errors} errors{skipped}; {summary.seconds:.1f} s, "
            f"{found['images_per_second']:.2f} images/s, {summary.waited:.1f} s of waiting for images",
            file=sys.stderr,
        )


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m mlx_fastvlm.caption``."""
    arguments = parser().parse_args(argv)
    return run(lambda: _run(arguments), debug=arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
