"""mlx-vlm's own converter, in a process of its environment, for checkpoints whose towers are small.

Run as a script by another environment's Python it answers each line of standard input, which asks for one conversion;
it imports nothing of this package.
"""

import atexit
import json
import subprocess
import sys
from pathlib import Path


class ConverterError(Exception):
    """mlx-vlm does not take the checkpoint."""


class Converter:
    """Another Python's mlx-vlm; loaded once, for many conversions."""

    def __init__(self, python: str):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([python, str(Path(__file__).resolve())], text=True, **pipes)
        atexit.register(self._process.kill)

    def __call__(self, source: Path, target: Path, **options):
        """Convert; its options are those of ``mlx_vlm.convert.convert``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([str(source), str(target), options]), file=self._process.stdin, flush=True)
        error = json.loads(self._process.stdout.readline())
        if error:
            raise ConverterError(error)


def answer():
    from mlx_vlm.convert import convert  # noqa: PLC0415  the other environment's
    from mlx_vlm.models.fastvlm import VisionConfig  # noqa: PLC0415  as above

    answers, sys.stdout = sys.stdout, sys.stderr
    released = {name: value for name, value in vars(VisionConfig).items() if not name.startswith("_")}
    for line in sys.stdin:
        source, target, options = json.loads(line)
        # Its class holds the released tower's shapes as constants, whatever config.json says.
        said = json.loads(Path(source, "config.json").read_text())["vision_config"]
        for name, value in released.items():
            setattr(VisionConfig, name, said.get(name, value))
        try:
            convert(source, target, **options)
            error = None
        except Exception as problem:
            error = f"{type(problem).__name__}: {str(problem).splitlines()[:1]}"
        print(json.dumps(error), file=answers, flush=True)


if __name__ == "__main__":
    answer()
