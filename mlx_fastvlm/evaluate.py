"""``python -m mlx_fastvlm.evaluate``: a file of questions about images in, a score out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .cli import flags
from .cli.parser import SOME_FAILED, Parser, run
from .cli.progress import DatasetProgress
from .cli.terminal import printable
from .data.sinks import Destination
from .errors import UsageError
from .evaluation.metrics import METRICS
from .evaluation.scores import Result, Task, score
from .files import json_line
from .generation.dataset import Job, Report, write_records

if TYPE_CHECKING:
    from .generation.options import GenerationOptions
    from .models.fastvlm import FastVlmForConditionalGeneration
    from .processing.processor import FastVlmProcessor


def parser() -> argparse.ArgumentParser:
    """The command line of ``python -m mlx_fastvlm.evaluate``."""
    parser = Parser(
        prog="fastvlm evaluate",
        description="Ask FastVLM the questions in a file, and score its answers. To continue after an interruption, "
        "run the command again. The exit code is 3 if some questions could not be asked; these count as wrong.",
        epilog="example: fastvlm evaluate --data chartqa.parquet --metric relaxed",
    )
    task = parser.add_argument_group("questions")
    task.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="a .jsonl or .parquet file with image, question and answer in each row",
    )
    task.add_argument("--metric", required=True, choices=tuple(METRICS), help="how to score answers")
    task.add_argument(
        "--post-prompt", metavar="TEXT", help="add this to each question (what the metric's benchmarks add)"
    )
    flags.add_system_flag(task)
    task.add_argument("--by", metavar="FIELD", help="also score each value of this field separately")
    task.add_argument(
        "--bootstrap-seed", type=int, default=0, metavar="N", help="seed for the bootstrap confidence interval"
    )
    records = parser.add_argument_group("predictions")
    records.add_argument(
        "--output", metavar="FILE", help="a .jsonl file (DATA-predictions.jsonl in the current folder)"
    )
    records.add_argument("--overwrite", action="store_true", help="replace existing predictions")
    records.add_argument(
        "--append-as", metavar="NAME", help="keep existing predictions, and add this run's under this name"
    )
    records.add_argument("--retry-errors", action="store_true", help="ask again where the prediction is an error")
    flags.add_pixel_flags(parser.add_argument_group("images"))
    flags.add_model_flags(parser)
    flags.add_sampling_flags(parser)
    flags.add_cache_flags(parser)
    flags.add_speed_flags(parser)
    printing = parser.add_argument_group("messages")
    printing.add_argument("--quiet", action="store_true", help="print only the table, no progress or warnings")
    printing.add_argument("--json", action="store_true", help="print a JSON object instead of the table")
    printing.add_argument("--debug", action="store_true", help=flags.DEBUG)
    return parser


def make_job(task: Task, destination: Destination, batch_size: int = 16, threads: int = 4) -> Job:
    """How a task's questions are asked.

    Raises:
        UsageError: ``destination`` is no file of JSON lines, or an option can't be.
    """
    if Path(destination.output).suffix.lower() != ".jsonl":
        raise UsageError("Predictions are JSON lines; give an --output that ends with .jsonl.")
    return Job([task.data], destination, "{question}" + task.template, batch_size=batch_size, threads=threads)


def measure(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    task: Task,
    job: Job,
    options: GenerationOptions,
    report: Report = lambda _: None,
) -> Result:
    """Ask a model all questions of a task that it has not answered before, and score its answers.

    Args:
        job: of :func:`make_job`.
        report: called with the summary so far, after each answer.

    Raises:
        UsageError: for a bad option, or where the predictions were made with others.
        ValueError, OSError: the questions or the predictions can't be read or written.
    """
    write_records(model, processor, job, options, report, task.questions)
    return score(task, job.destination)


def _run(arguments: argparse.Namespace) -> int:
    """The command; its exit code."""
    result = _measure(arguments)
    _print(result, arguments)
    return SOME_FAILED if result.errors else 0


def _measure(arguments: argparse.Namespace) -> Result:
    options = flags.options(arguments)  # what is wrong with them is told before the model loads
    data = Path(arguments.data).expanduser()
    task = Task(data, arguments.metric, arguments.post_prompt, arguments.by, arguments.bootstrap_seed)
    output = arguments.output or f"{data.stem}-predictions.jsonl"
    destination = Destination(
        output, append_as=arguments.append_as, overwrite=arguments.overwrite, retry_errors=arguments.retry_errors
    )
    job = make_job(task, destination, arguments.batch_size, arguments.threads)
    _ = task.questions  # what is wrong with them is told before the model loads, too
    model, processor = flags.load_chosen_model(arguments)
    with DatasetProgress(hidden=arguments.quiet) as progress:
        return measure(model, processor, task, job, options, progress)


def _print(result: Result, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json_line({"data": arguments.data, "source": arguments.model, **result.as_dict()}))
    else:
        print(printable(result.table()))
    if not arguments.quiet:
        if result.errors:
            print(
                f"{result.errors} questions have no answer and count as wrong; the first: "
                f"{printable(str(result.first_error))}",
                file=sys.stderr,
            )
        if result.cut:
            print(f"{result.cut} answers were cut off at --max-tokens {arguments.max_tokens}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m mlx_fastvlm.evaluate``."""
    arguments = parser().parse_args(argv)
    return run(lambda: _run(arguments), debug=arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
