"""Several processes under mlx.launch train as one does."""

import json
import os
import shutil
import socket
import sys

import mlx.core as mx
import pytest

from mlx_fastvlm.files import read_safetensors
from mlx_fastvlm.lora import main
from tests.support.paths import ROOT
from tests.support.ranks import finish, free_ports, launch, start_ranks
from tests.support.training import IMAGES, rows

LORA = "mlx_fastvlm.lora"


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows(7))))
    (folder / "valid.jsonl").write_text("\n".join(map(json.dumps, rows(5))))
    for i in range(1, 8):
        shutil.copy(IMAGES / f"shapes-{i}.png", folder)
    return folder


@pytest.fixture
def words(data, checkpoint):
    words = ["--model", checkpoint("apple"), "--dtype", "float32", "--data", data, "--train", "--iters", 4]
    words += ["--batch-size", 4, "--grad-accumulation-steps", 2, "--save-every", 4, "--learning-rate", 1e-3]
    return [*words, "--scale", 4, "--rank", 4, "--steps-per-eval", 4, "--steps-per-report", 2]


def told(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_two_processes_are_as_one(words, tmp_path):
    """An epoch's last batch, of three rows, and accumulated batches among them."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert main([*map(str, words), "--adapter-path", str(alone)]) == 0
    done = launch([LORA, *words, "--adapter-path", both])
    assert done.stdout.count("Iter 4: loss") == 1, done.stderr
    expected, _ = read_safetensors(alone / "adapters.safetensors")
    found, _ = read_safetensors(both / "adapters.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert mx.abs(tensor - found[name]).max().item() < 1e-5, name
    assert any(mx.abs(tensor).max().item() > 1e-4 for name, tensor in found.items() if name.endswith("lora_b"))
    for one, two in zip(told(alone), told(both), strict=True):
        for name in ("loss", "valid_loss", "answer_tokens", "iteration"):
            assert one.get(name) == pytest.approx(two.get(name), abs=1e-5) if name in one else name not in two


def test_it_goes_on(words, tmp_path):
    """Together as alone; and not with another number of processes, whose sums are rounded otherwise."""
    words = [*words, "--adapter-path", tmp_path / "both"]
    for more in ([], ["--iters", 8, "--resume"]):
        done = launch([LORA, *words, *more])
        assert f"Iter {8 if more else 4}: loss" in done.stdout, done.stderr
    assert [line["iteration"] for line in told(tmp_path / "both") if "loss" in line] == [2, 4, 6, 8]


def test_more_processes_than_rows_are_refused(words, tmp_path):
    done = launch([LORA, *words, "--batch-size", 1, "--adapter-path", tmp_path / "both"])
    assert "batch_size is for all processes together" in done.stdout + done.stderr
    assert not (tmp_path / "both" / "adapters.safetensors").exists()


CORES = """
import json, os
import mlx_fastvlm, mlx.core as mx
from mlx_fastvlm.models import streams
from mlx_fastvlm.tuner.ranks import Ranks
mx.eval(streams.spread(mx.zeros(4), range(4), lambda x, i: x + i))  # there are threads already
for _ in range(2):
    Ranks().divide_cores()
    cores = {tuple(sorted(os.sched_getaffinity(int(thread)))) for thread in os.listdir("/proc/self/task")}
    print(json.dumps([*map(list, cores)]), streams.free_cores())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a program choose its cores")
@pytest.mark.parametrize("count", [2, 3])
def test_processes_on_one_machine_have_cores_of_their_own(count, tmp_path, monkeypatch):
    """All of their threads, in equal shares; where there are too few cores, all keep all."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // count
    ends = finish(start_ranks([sys.executable, "-c", CORES], tmp_path, count))
    for place, (code, out, err) in enumerate(ends):
        assert code == 0, err
        share = cores[place * each : (place + 1) * each] or cores
        assert out.splitlines() == [f"[{share}] {min(8, len(share))}"] * 2


def test_processes_that_do_not_meet_are_one_line(tmp_path):
    """Something else has the second one's port."""
    ports = free_ports(2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[1]))
        taken.listen()
        (first, second) = start_ranks([sys.executable, "-m", LORA, "--train"], tmp_path, ports=ports)
        out, err = second.communicate(timeout=60)
    first.kill()
    first.communicate()
    assert (second.returncode, out) == (1, "")
    assert err.startswith("error: The processes can't reach each other")
    assert err.count("\n") == 1
