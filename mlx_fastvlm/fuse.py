"""``python -m mlx_fastvlm.fuse``: a model and its adapters -> one checkpoint."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from .checkpoints import quantization
from .checkpoints.adapters import read_adapter_config
from .checkpoints.peft import write_peft
from .checkpoints.targets import LAYOUTS
from .checkpoints.weights import DTYPES
from .cli.flags import DEBUG, DEFAULT_MODEL, Q_GROUP_SIZE, REVISION
from .cli.parser import Parser, run
from .conversion.source import LICENSE_PATTERNS
from .errors import UsageError
from .files import check_target
from .hub import find_checkpoint, is_within
from .models.lora import adapter_tensors
from .models.pretrained import load
from .tuner.fusing import dequantize_model, fuse_adapters, lost_by_rounding, quantize_model


def parser() -> argparse.ArgumentParser:
    """The command line of ``python -m mlx_fastvlm.fuse``."""
    parser = Parser(
        prog="python -m mlx_fastvlm.fuse",
        description="Merge trained adapters into their model, and write a checkpoint that works without them.",
        epilog="example: fastvlm fuse --model demo --adapter-path adapters --save-path fused",
    )
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, metavar="SOURCE", help="the model that was fine-tuned")
    parser.add_argument("--adapter-path", type=Path, default="adapters", metavar="FOLDER", help="the adapters to merge")
    parser.add_argument("--save-path", type=Path, default="fused_model", metavar="FOLDER", help="the folder to write")
    parser.add_argument(
        "--layout",
        choices=(*LAYOUTS, "peft"),
        default="mlx",
        help="layout of the result; peft writes only the adapters, unmerged, for transformers and PEFT (mlx)",
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="type of the weights (the model's)")
    parser.add_argument("--revision", help=REVISION)
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace the folder if it is not empty, and round even if that loses what was learnt",
    )
    packing = parser.add_argument_group("quantization")
    packing.add_argument(
        "--dequantize", action="store_true", help="unpack a quantized model instead of rounding it again"
    )
    packing.add_argument(
        "--q-bits",
        type=int,
        choices=quantization.BITS,
        metavar="N",
        help="quantize the result to this many bits (as the model is)",
    )
    packing.add_argument(
        "--q-group-size", type=int, choices=quantization.GROUP_SIZES, metavar="N", help=f"{Q_GROUP_SIZE} (64)"
    )
    parser.add_argument("--debug", action="store_true", help=DEBUG)
    return parser


def _fuse(arguments: argparse.Namespace) -> None:
    if arguments.q_group_size and not arguments.q_bits:
        raise UsageError("--q-group-size says how to quantize; add --q-bits, or leave it out.")
    if arguments.q_bits and arguments.layout == "transformers":
        raise UsageError("transformers can't load MLX's quantized weights; leave out --q-bits, or write layout mlx.")
    if arguments.layout == "peft" and (arguments.q_bits or arguments.dequantize or arguments.dtype):
        raise UsageError("PEFT's layout holds the adapters alone; leave out --q-bits, --dequantize and --dtype.")
    check_target(arguments.save_path, force=arguments.force)
    source = find_checkpoint(arguments.model, arguments.revision, LICENSE_PATTERNS)
    for read in (source.resolve(), arguments.adapter_path.resolve()):
        if arguments.save_path.resolve() in (read, *read.parents):
            raise UsageError(
                f"{arguments.save_path} is or holds what is read, which would be overwritten; choose another folder."
            )
    config = read_adapter_config(arguments.adapter_path)
    how: dict[str, Any] = {"dtype": arguments.dtype, "revision": arguments.revision}
    model, processor = load(arguments.model, adapter_path=arguments.adapter_path, **how)
    if arguments.layout == "peft":
        write_peft(arguments.save_path, config, adapter_tensors(model), str(arguments.model))
        print(f"wrote {arguments.save_path}: adapters for PEFT ({config.fine_tune_type})")
        return
    if config.fine_tune_type == "full":
        if arguments.dequantize:
            dequantize_model(model)
        print("the weights of a full fine-tuning: there is nothing to fuse")
    else:
        how = {"dequantize": arguments.dequantize, "force": arguments.force}
        lost = 0.0 if arguments.dequantize else lost_by_rounding(model)
        rounded = f"; rounding lost {lost:.0%} of them" if lost else ""
        print(f"fused {len(fuse_adapters(model, **how))} adapters ({config.fine_tune_type}){rounded}")
    if arguments.q_bits:
        quantize_model(model, arguments.q_bits, arguments.q_group_size)
    folder = arguments.save_path
    model.save_pretrained(folder, layout=arguments.layout, processor=processor, force=arguments.force)
    _copy_licenses(source, folder)
    print(f"wrote {folder}")


def _copy_licenses(source: Path, folder: Path) -> None:
    """The terms of the weights go with them."""
    for pattern in LICENSE_PATTERNS:
        for file in source.glob(pattern):
            if file.is_file() and is_within(file, source):
                shutil.copyfile(file, folder / file.name)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m mlx_fastvlm.fuse``."""
    arguments = parser().parse_args(argv)
    return run(lambda: _fuse(arguments), debug=arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
