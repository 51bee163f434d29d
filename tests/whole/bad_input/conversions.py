"""Conversions that can't be done."""

from pathlib import Path

from mlx_fastvlm.convert import main as convert_main

from .cases import Case
from .checkpoints import only_a_pickle, spoil, tensors

TARGET = ["--mlx-path", "out", "--no-verify"]


def conversion(words, *flags, code=1, source=lambda place: place.good):
    return Case(words, lambda place: ["--hf-path", source(place), *TARGET, *flags], code, command=convert_main)


CASES = {
    "conversion: no source": conversion("nor a hub id", source=lambda p: "nowhere"),
    "conversion: both ways": conversion("exclude each other", "--quantize", "--dequantize", code=2),
    "conversion: bits": conversion("invalid choice: 7", "--quantize", "--q-bits", "7", code=2),
    "conversion: layout": conversion("invalid choice: 'gguf'", "--layout", "gguf", code=2),
    "conversion: misspelt": conversion("did you mean --quantize?", "--quantise", code=2),
    "conversion: public what": conversion("upload_repo", "--public", code=2),
    "conversion: quantized transformers": conversion("can't load", "--quantize", "--layout", "transformers", code=2),
    "conversion: into a folder that is not empty": Case(
        "--force",
        lambda p: ["--hf-path", p.good, "--mlx-path", str(Path(p.file("mine.txt", "precious")).parent)],
        command=convert_main,
    ),
    "conversion: onto a file": Case(
        "exists already",
        lambda p: ["--hf-path", p.good, "--mlx-path", p.file("mine.txt", "precious")],
        command=convert_main,
    ),
    "conversion: a pickle": conversion("no safetensors file", source=lambda p: p.checkpoint(only_a_pickle)),
    "conversion: NaN weights": Case(
        "does not compute",
        lambda p: ["--hf-path", p.checkpoint(tensors(spoil)), "--mlx-path", "out"],
        command=convert_main,
    ),
}
