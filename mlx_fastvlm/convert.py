"""``python -m mlx_fastvlm.convert``, and ``convert.py``: convert, quantize and verify a checkpoint."""

from __future__ import annotations

import argparse
import shlex
import sys

from .checkpoints import quantization
from .checkpoints.targets import LAYOUTS
from .checkpoints.weights import DTYPES
from .cli.flags import DEBUG, Q_BITS, Q_GROUP_SIZE, REVISION, SOURCE
from .cli.parser import Parser, run
from .cli.terminal import ProgressBars
from .conversion.converter import convert
from .conversion.options import GOLDEN_URL
from .tuner.calibration import calibration
from .tuner.conversations import read_conversations


def parser() -> argparse.ArgumentParser:
    """The command line of ``convert.py`` and ``python -m mlx_fastvlm.convert``."""
    parser = Parser(
        prog="convert.py",
        description="Convert a FastVLM in any layout to MLX safetensors, optionally quantized, and verify the result.",
        epilog="example: python convert.py --hf-path apple/FastVLM-0.5B --mlx-path fastvlm-4bit -q",
    )
    parser.add_argument("--hf-path", "--model", "-m", required=True, metavar="SOURCE", help=SOURCE)
    parser.add_argument("--mlx-path", default="mlx_model", metavar="FOLDER", help="the folder to write")
    parser.add_argument("--layout", choices=LAYOUTS, default="mlx", help="layout of the result")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="type of the weights (the source's)")
    parser.add_argument("--revision", help=REVISION)
    parser.add_argument("--vision-from", metavar="SOURCE", help="take the vision tower from this checkpoint")
    parser.add_argument("--force", action="store_true", help="replace FOLDER if it is not empty")

    quantizing = parser.add_argument_group("quantization")
    quantizing.add_argument("-q", "--quantize", action="store_true", help="quantize the decoder")
    quantizing.add_argument(
        "--q-bits", type=int, choices=quantization.BITS, metavar="N", help=f"{Q_BITS}; implies -q (4)"
    )
    quantizing.add_argument(
        "--q-group-size",
        type=int,
        choices=quantization.GROUP_SIZES,
        metavar="N",
        help=f"{Q_GROUP_SIZE}; implies -q (64)",
    )
    quantizing.add_argument(
        "--q-mode", choices=("affine", *quantization.FIXED), default="affine", help="how to encode the weights"
    )
    quantizing.add_argument(
        "--q-vision", action="store_true", help="with -q, also quantize the projector and the tower's linear layers"
    )
    quantizing.add_argument("--q-mixed", action="store_true", help="with -q, use 8 bits where fewer hurt most")
    quantizing.add_argument(
        "--q-gptq",
        metavar="DATA",
        help="calibrate on conversations about images, in any form that lora reads; implies -q",
    )
    quantizing.add_argument("-d", "--dequantize", action="store_true", help="unpack a quantized source")

    checking = parser.add_argument_group("verification")
    checking.add_argument(
        "--verify",
        nargs="?",
        const="agreement",
        choices=("agreement", "golden"),
        default="agreement",
        help="compare the result with the source; golden also compares released weights with published values "
        "(agreement)",
    )
    checking.add_argument("--no-verify", dest="verify", action="store_const", const=None, help="skip verification")
    checking.add_argument(
        "--golden-image", default=GOLDEN_URL, metavar="IMAGE", help="where to find COCO image 000000039769, for golden"
    )

    sharing = parser.add_argument_group("sharing")
    sharing.add_argument("--upload-repo", metavar="REPO", help="upload the result to this hub repository")
    sharing.add_argument("--public", action="store_true", help="make that repository public")
    sharing.add_argument("--debug", action="store_true", help=DEBUG)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``convert.py`` and of ``python -m mlx_fastvlm.convert``."""
    arguments = parser().parse_args(argv)
    options = dict(vars(arguments))
    debug = options.pop("debug")
    options["quantize"] |= any(options[name] is not None for name in ("q_bits", "q_group_size", "q_gptq"))
    options["verify"] = {"agreement": True, "golden": "golden", None: False}[options["verify"]]
    data = options.pop("q_gptq")
    options["command"] = shlex.join(["python", "convert.py", *(sys.argv[1:] if argv is None else argv)])

    def command() -> None:
        calibrated = None if data is None else calibration(read_conversations(data, "train"))
        with ProgressBars({"calibrating": " layers", "writing": "B", "verifying": " layers"}) as progress:
            report = convert(**options, q_gptq=calibrated, progress=progress)
        print(f"wrote {arguments.mlx_path}\n{report}")

    return run(command, debug=debug)


if __name__ == "__main__":
    sys.exit(main())
