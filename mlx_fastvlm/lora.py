"""``python -m mlx_fastvlm.lora``: fine-tune a FastVLM on your own images and answers."""

from __future__ import annotations

import argparse
import difflib
import io
import math
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx.utils import tree_flatten

from .checkpoints.adapters import KINDS, AdapterConfig
from .checkpoints.weights import DTYPES
from .cli.flags import DEBUG, DEFAULT_MODEL, DTYPE, FORCE, REVISION
from .cli.parser import Parser, run
from .cli.terminal import ProgressBars
from .errors import UsageError, require
from .files import check_size
from .models.pretrained import load
from .tuner.conversations import read_conversations
from .tuner.curves import LOG, Log, TensorBoard, plot_losses, tensorboard_writer
from .tuner.features import ImageFeatures
from .tuner.options import OPTIMIZERS, SCHEDULES, TrainingOptions
from .tuner.ranks import Ranks
from .tuner.samples import encode_all
from .tuner.trainer import evaluate, train

if TYPE_CHECKING:
    from collections.abc import Callable

    from .models.fastvlm import FastVlmForConditionalGeneration
    from .processing.processor import FastVlmProcessor
    from .tuner.conversations import Conversation
    from .tuner.reports import Report
    from .tuner.samples import Sample

SPLITS = ("train", "valid", "test")
# Of what is no option of the training itself; the rest are the dataclasses' defaults.
OWN = {
    "model": DEFAULT_MODEL,
    "dtype": None,
    "revision": None,
    "force": False,
    "data": None,
    "image_folder": None,
    "train": False,
    "test": False,
    "test_batches": 500,
    "plot": None,
    "report_to": None,
}
ADAPTER = {field.name for field in fields(AdapterConfig)}
TRAINING = {field.name for field in fields(TrainingOptions)} - {"adapters"}


def parser() -> argparse.ArgumentParser:
    """The command line of ``python -m mlx_fastvlm.lora``; a flag that is not given is None."""
    parser = Parser(
        prog="python -m mlx_fastvlm.lora",
        description="Fine-tune FastVLM on your own images and answers: LoRA, DoRA, QLoRA (quantized models) or full.",
        epilog="example: fastvlm lora --model demo --data my-data --train --iters 200",
    )
    defaults = {field.name: field.default for kind in (TrainingOptions, AdapterConfig) for field in fields(kind)}

    def add(
        group: Any, flag: str, kind: Any, words: str, metavar: str = "N", choices: Any = None, short: Any = ()
    ) -> None:
        default = defaults.get(flag[2:].replace("-", "_"), OWN.get(flag[2:].replace("-", "_")))
        said = "" if default is None or words.endswith(")") else f" ({default})"
        group.add_argument(
            *short, flag, type=kind, metavar=None if choices else metavar, choices=choices, help=words + said
        )

    def switch(group: Any, flag: str, words: str, **how: Any) -> None:
        group.add_argument(flag, action="store_true", default=None, help=words, **how)

    model = parser.add_argument_group("model")
    add(model, "--model", str, "a folder, a hub id, or demo; quantized models work too", "SOURCE", short=["-m"])
    add(model, "--dtype", str, DTYPE, choices=tuple(DTYPES))
    add(model, "--revision", str, REVISION, "NAME")
    switch(model, "--force", FORCE)

    data = parser.add_argument_group("data")
    add(
        data,
        "--data",
        Path,
        "a folder with train.jsonl and optionally valid.jsonl and test.jsonl, or a single file",
        "DIR",
    )
    add(data, "--image-folder", Path, "folder that relative image paths start from (the data's)", "DIR")
    add(
        data,
        "--image-size",
        int,
        "side to scale images to, a multiple of 64; use the same for the trained model (the checkpoint's)",
        "PIXELS",
    )
    add(data, "--max-seq-length", int, "skip rows with more tokens, and report how many")
    mask: Any = argparse.BooleanOptionalAction
    data.add_argument("--mask-prompt", action=mask, default=None, help="learn only the answers (yes)")
    add(data, "--feature-folder", Path, "cache image features here (ADAPTER_PATH/features)", "DIR")

    what = parser.add_argument_group("what to train")
    switch(what, "--train", "train on --data")
    switch(what, "--test", "measure the loss on the test set, after training or for the adapters in --adapter-path")
    add(what, "--fine-tune-type", str, "train lora or dora adapters, or all weights", choices=KINDS)
    add(what, "--num-layers", int, "decoder layers to train, counted from the end; -1 means all")
    switch(what, "--train-projector", "train the projector too")
    switch(what, "--train-embeddings", "train the token embedding and the head too, for words new to the model")
    switch(what, "--train-vision", "train the vision tower too")
    add(
        what,
        "--vision-stages",
        int,
        "with --train-vision, stages to train, counted from the end; -1 means all, and no image features are cached",
    )
    add(what, "--rank", int, "rank of the adapters")
    add(what, "--scale", float, "weight of an adapter's output: alpha / rank", "X")
    add(what, "--dropout", float, "dropout on the adapters' input during training", "X")
    add(
        what,
        "--keys",
        str,
        "linear layers to adapt, such as self_attn.q_proj,self_attn.v_proj (all in a decoder layer)",
        "NAMES",
    )

    how = parser.add_argument_group("how to train")
    add(how, "--iters", int, "batches to train on")
    add(how, "--batch-size", int, "rows per batch")
    add(how, "--grad-accumulation-steps", int, "batches per update")
    add(how, "--learning-rate", float, "learning rate after the warm-up", "X")
    add(
        how,
        "--lr-schedule",
        str,
        "decay to zero by the end; a config file can name any MLX schedule (constant)",
        choices=SCHEDULES,
    )
    add(how, "--warmup", int, "updates over which the learning rate rises")
    add(how, "--optimizer", str, "optimizer", choices=tuple(OPTIMIZERS))
    add(how, "--weight-decay", float, "weight decay, for optimizers that have it (MLX's)", "X")
    add(how, "--max-grad-norm", float, "clip gradients to this norm", "X")
    switch(how, "--grad-checkpoint", "use less memory but more time")
    add(how, "--seed", int, "seed for the order of rows, new adapters and dropout")

    files = parser.add_argument_group("files and reports")
    add(files, "--adapter-path", Path, "folder of the adapters (adapters)", "DIR")
    switch(files, "--resume", "continue exactly where the last run stopped")
    add(files, "--resume-adapter-file", Path, "start from these weights", "FILE")
    add(files, "--save-every", int, "iterations between saves")
    add(files, "--steps-per-report", int, "iterations between reports")
    add(files, "--steps-per-eval", int, "iterations between evaluations")
    add(files, "--val-batches", int, "batches per evaluation; -1 means all")
    add(files, "--test-batches", int, "batches of the test set; -1 means all")
    add(
        files,
        "--report-to",
        str,
        "also write curves to the adapters' folder; needs tensorboard",
        choices=("tensorboard",),
    )
    add(files, "--plot", Path, "plot the losses to this file; needs matplotlib", "PNG")
    files.add_argument(
        "-c", "--config", type=Path, metavar="YAML", help="read options from this file; flags take precedence"
    )
    files.add_argument("--debug", action="store_true", help=DEBUG)
    return parser


def settings(arguments: argparse.Namespace) -> tuple[dict[str, Any], TrainingOptions]:
    """The command's own settings, and the training's, from flags and the config file.

    Raises:
        UsageError: for unknown names in the file, and values that can't be.
    """
    given = _read_yaml(arguments.config) if arguments.config else {}
    flags = {name: value for name, value in vars(arguments).items() if value is not None}
    if "keys" in flags:
        flags["keys"] = tuple(name.strip() for name in flags["keys"].split(","))
    given |= {name: value for name, value in flags.items() if name not in ("config", "debug")}
    own = {name: given.pop(name, default) for name, default in OWN.items()}
    adapters = AdapterConfig(**{name: given.pop(name) for name in ADAPTER & given.keys()})
    given.setdefault("adapter_path", "adapters")
    given.setdefault("feature_folder", Path(given["adapter_path"]) / "features")
    return own, TrainingOptions(adapters=adapters, **given)


def _read_yaml(path: Path) -> dict[str, Any]:
    """A config file's options; ``lora_parameters`` hold the adapters', as mlx-lm's do."""
    try:
        import yaml  # noqa: PLC0415  an extra
    except ImportError:
        raise UsageError('--config needs PyYAML: pip install "mlx-fastvlm[yaml]".') from None
    try:
        check_size(path)
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not YAML ({error}).") from None
    if not isinstance(given, dict):
        raise UsageError(f"{path} holds no options; write lines such as `iters: 200`.")
    parameters = given.pop("lora_parameters", None) or {}
    if not isinstance(parameters, dict):
        raise UsageError(f"{path}: lora_parameters must hold rank, scale, dropout or keys.")
    given |= parameters
    known = OWN.keys() | ADAPTER | TRAINING
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            raise UsageError(f"{path}: there is no option {name}" + (f"; did you mean {near[0]}?" if near else "."))
    if isinstance(given.get("keys"), list):
        given["keys"] = tuple(given["keys"])
    # YAML takes 1e-5 for a text; it wants 1.0e-5.
    return {name: _number(value) if name in FLOATS else value for name, value in given.items()}


FLOATS = ("learning_rate", "scale", "dropout", "weight_decay", "max_grad_norm")


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _tell_once(arguments: argparse.Namespace) -> None:
    """Of several processes, the first one prints."""
    ranks = Ranks()
    with nullcontext() if ranks.is_first else redirect_stdout(io.StringIO()):
        _lora(arguments, ranks)


def _lora(arguments: argparse.Namespace, ranks: Ranks) -> None:
    own, options = settings(arguments)
    if not (own["train"] or own["test"]):
        raise UsageError("Say what to do: --train, --test, or both.")
    if own["data"] is None:
        raise UsageError("Say what to learn: --data DIR, with train.jsonl in it.")
    if own["plot"]:
        _need_matplotlib()
    if own["report_to"]:
        require(own["report_to"] == "tensorboard", "report_to must be tensorboard", own["report_to"])
        tensorboard_writer()
    wanted = (("train", "valid") if own["train"] else ()) + (("test",) if own["test"] else ())
    data = {split: read_conversations(own["data"], split, own["image_folder"]) for split in wanted}
    for split in ("train", "test"):
        if split in wanted and not data[split]:
            raise FileNotFoundError(f"{own['data']} has no {split} set; put {split}.jsonl there.")
    adapters = None if own["train"] else options.adapter_path
    loading = {name: own[name] for name in ("dtype", "revision", "force")}
    model, processor = load(own["model"], adapter_path=adapters, **loading)
    with ProgressBars(dict.fromkeys(data, " rows")) as bars:
        samples = {}
        for split, rows in data.items():
            shown = partial(_Counter(bars), split) if ranks.is_first else _nothing
            samples[split] = _samples(split, rows, processor, options, shown)
    if own["train"]:
        logs: list[Log | TensorBoard] = []
        if own["report_to"] and ranks.is_first:
            logs.append(TensorBoard(_folder(options) / "tensorboard"))
        _train(model, processor, samples, options, own["plot"] if ranks.is_first else None, logs)
    if own["test"] and ranks.is_first:
        _test(model, processor, samples["test"], options, own["test_batches"])


def _samples(
    split: str,
    rows: list[Conversation],
    processor: FastVlmProcessor,
    options: TrainingOptions,
    progress: Callable[[int, int], None],
) -> list[Sample]:
    how: dict[str, Any] = {"max_seq_length": options.max_seq_length, "image_size": options.image_size}
    samples, dropped = encode_all(rows, processor, mask_prompt=options.mask_prompt, progress=progress, **how)
    if rows:
        tokens, learnt = sum(len(s.ids) for s in samples), sum(s.answer_tokens for s in samples)
        left_out = f"; {len(dropped)} rows longer than {options.max_seq_length} tokens are left out" if dropped else ""
        print(f"{split}: {len(samples)} rows, {tokens} tokens, {learnt} of them to learn{left_out}")
    return samples


def _train(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    samples: dict[str, list[Sample]],
    options: TrainingOptions,
    plot: Path | None,
    logs: list[Log | TensorBoard],
) -> None:
    folder = _folder(options)
    log = Log(folder / LOG, options.resume)

    def report(told: Report) -> None:
        print(line(told), flush=True)
        for kept in (log, *logs):
            kept.add(told)

    with ProgressBars({"images": " images"}) as bars:
        shown = _Counter(bars)
        config = train(model, processor, samples["train"], samples["valid"], options, report=report, progress=shown)
    trained = sum(x.size for _, x in tree_flatten(model.trainable_parameters()))
    print(f"wrote {folder}: {config.fine_tune_type}, {trained} trained parameters")
    if plot:
        plot_losses(log.told, plot, f"Fine-tuning ({config.fine_tune_type})")


def _folder(options: TrainingOptions) -> Path:
    return Path(str(options.adapter_path)).expanduser()


class _Counter:
    """Turns "so many are done" into what a progress bar takes."""

    def __init__(self, bars: ProgressBars) -> None:
        self._bars, self._done = bars, 0

    def __call__(self, step: str, done: int, total: int) -> None:
        self._bars(step, done - self._done, total)
        self._done = done


def _nothing(done: int, total: int) -> None:
    """Shown by one of several processes that is not the first."""


def line(told: Report) -> str:
    """A report for people."""
    if told.valid_loss is not None:
        return f"Iter {told.iteration}: validation loss {told.valid_loss:.4f}"
    return (
        f"Iter {told.iteration}: loss {told.loss:.4f}, learning rate {told.learning_rate:.2e}, "
        f"{told.images_per_second:.1f} images/s, {told.tokens_per_second:.0f} tokens/s, "
        f"{told.answer_tokens} answer tokens, peak memory {told.peak_memory:.2f} GB"
    )


def _test(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    samples: list[Sample],
    options: TrainingOptions,
    batches: int,
) -> None:
    model.freeze()
    features = ImageFeatures(model, processor, options.image_size, Path(str(options.feature_folder)).expanduser())
    features.prepare(samples)
    loss = evaluate(model, processor, samples, features, batch_size=options.batch_size, batches=batches)
    print(f"Test loss {loss:.4f}, perplexity {math.exp(min(loss, 700)):.4f}")


def _need_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401, PLC0415  an extra
    except ImportError:
        raise UsageError('--plot needs matplotlib: pip install "mlx-fastvlm[plot]".') from None


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m mlx_fastvlm.lora``."""
    arguments = parser().parse_args(argv)
    return run(lambda: _tell_once(arguments), debug=arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
