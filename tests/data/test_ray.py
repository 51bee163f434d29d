"""Ray Data: batches are the records of the command, also where a node is lost."""

import os
import sys

import numpy as np
import pytest

from mlx_fastvlm.data.ray import Captioner
from mlx_fastvlm.generation.dataset import caption_dataset
from tests.support.datasets import encoded, job, read_records
from tests.support.paths import ROOT
from tests.support.processes import run

pytest.importorskip("pyarrow", reason="needs pyarrow, of the extra test")


@pytest.fixture
def captioner(checkpoint):
    return Captioner(str(checkpoint("apple")), "What?", image_size=64, max_tokens=3)


def rows(table):
    return [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]


def test_a_batch_is_what_the_command_writes(captioner, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.png").write_bytes(encoded(i) if i != 3 else b"broken")
    caption_dataset(
        captioner._model, captioner._processor, job(folder, tmp_path / "out.jsonl"), image_size=64, max_tokens=3
    )
    names = [f"{i}.png" for i in range(5)]
    images = [(folder / name).read_bytes() for name in names]
    found = captioner({"path": np.array(names), "bytes": np.array(images, object)})
    for row, record in zip(rows(found), read_records(tmp_path, "jsonl"), strict=True):
        assert ("error" in row) == ("error" in record) == (row["key"] == "3.png")
        assert {**row, "error": ""} == {**record, "error": ""}  # which names the file, where there is one


def test_images_in_every_form_and_own_prompts(captioner):
    pixels = np.full((7, 9, 3), (5, 0, 128), np.uint8)
    images = np.empty(4, object)
    images[:] = [encoded(5), {"bytes": encoded(5), "path": None}, pixels, "/etc/passwd"]
    batch = {"id": np.array([1, 1, 2, 3]), "image": images}
    first, second, third, fourth = rows(captioner(batch))
    assert first == second  # a key may come twice here
    assert third == {**first, "key": "2"}
    assert (fourth["key"], fourth["error"].partition(";")[0]) == ("3", "The image column holds str")
    asked = rows(captioner({**batch, "prompt": np.array(["Who?", None, "What?", None], object)}))
    assert asked[0]["prompt"] != first["prompt"]
    assert asked[1:3] == [second, third]


def test_decisions_and_columns_that_are_missing(checkpoint):
    captioner = Captioner(str(checkpoint("apple")), "Is it?", choices=["Yes", "No"], image="picture", image_size=64)
    (row,) = rows(captioner({"picture": np.array([encoded(1)], object), "__key__": np.array(["a"])}))
    assert row["choice"] in ("Yes", "No")
    assert set(row) == {"key", "choice", "probabilities", "model", "prompt"}
    with pytest.raises(ValueError, match="no column picture for the images among image"):
        captioner({"image": np.array([encoded(1)], object), "key": np.array(["a"])})
    with pytest.raises(ValueError, match="no column key or __key__"):
        captioner({"picture": np.array([encoded(1)], object)})


def test_a_node_that_is_killed_midway():
    pytest.importorskip("ray", reason="needs ray, of the extra ray")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    command = [sys.executable, "-m", "tests.support.ray_cluster", "--images", "120"]
    ended = run(command, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    assert "120 records of 120 images, 120 keys;" in ended.stdout
    assert "0 records differ" in ended.stdout
