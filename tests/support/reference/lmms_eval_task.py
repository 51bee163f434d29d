"""Ten scenes through lmms-eval and the server, and through ``mlx_fastvlm.evaluate``: the same score, or exit code 1.

    python -m venv .lmms && .lmms/bin/pip install lmms-eval==0.7.3 "filelock<3.20"
    python -m tests.support.reference.lmms_eval_task --python .lmms/bin/python

Nothing is downloaded but that package. Prints lmms-eval's table and the command's.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from mlx_fastvlm import evaluate
from tests.support.scripts import load_script
from tests.support.server import Running

ROWS = 10
TASK = """\
task: scenes
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.images
doc_to_text: !function utils.prompt
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 32
  temperature: 0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: true
"""
FUNCTIONS = """\
import io

from PIL import Image


def images(doc):
    return [Image.open(io.BytesIO(doc["image"]["bytes"])).convert("RGB")]


def prompt(doc, lmms_eval_specific_kwargs=None):
    return doc["prompt"]
"""


def write_rows(file: Path):
    """Ten scenes that the demo has not seen, a question about each."""
    import pyarrow  # noqa: PLC0415  an extra
    import pyarrow.parquet  # noqa: PLC0415  an extra

    scenes = load_script("examples/demo/scenes.py")
    rows = []
    for number, seed in enumerate(scenes.HELD_OUT_SEEDS[:ROWS]):
        scene = scenes.make_scene(seed)
        scenes.draw(scene, 256).save(file.with_name("scene.png"))
        (asked,) = scenes.questions(scene, random.Random(number), 1)
        image = {"bytes": file.with_name("scene.png").read_bytes(), "path": f"{number}.png"}
        rows.append({"image": image, "prompt": asked.text, "answer": asked.answer})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def lmms_eval(python: str, folder: Path) -> str:
    """What it prints about the task, asked of a server of the demo."""
    task = folder / "task"
    task.mkdir()
    (task / "scenes.yaml").write_text(TASK.format(data=folder / "rows.parquet"))
    (task / "utils.py").write_text(FUNCTIONS)
    home = {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    with Running() as server:
        where = f"model=demo,base_url={server.url}/v1,api_key=none,timeout=120,num_concurrent=4"
        command = [python, "-m", "lmms_eval", "--model", "openai", "--model_args", where]
        command += ["--tasks", "scenes", "--include_path", str(task), "--batch_size", "1"]
        done = subprocess.run(command, cwd=folder, env={**os.environ, **home}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", required=True, help="of the environment that has lmms-eval")
    python = str(Path(parser.parse_args().python).absolute())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.parquet")
        table = "\n".join(line for line in lmms_eval(python, folder).splitlines() if line.startswith("|"))
        print(table)
        arguments = [
            "--model",
            "demo",
            "--data",
            str(folder / "rows.parquet"),
            "--metric",
            "exact",
            "--max-tokens",
            "32",
        ]
        evaluate.main([*arguments, "--output", str(folder / "predictions.jsonl")])
        task = evaluate.Task(folder / "rows.parquet", "exact")
        destination = evaluate.Destination(str(folder / "predictions.jsonl"))
        ours = evaluate.score(task, destination).total.score
    theirs = re.search(r"exact_match\s*\|[^|\d]*\|\s*([\d.]+)", table)
    return 0 if theirs and abs(100 * float(theirs[1]) - ours) < 0.01 else 1


if __name__ == "__main__":
    sys.exit(main())
