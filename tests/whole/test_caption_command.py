"""``python -m mlx_fastvlm.caption``, as a user runs it."""

import contextlib
import io
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from mlx_fastvlm import Engine
from mlx_fastvlm.caption import main
from mlx_fastvlm.data.shards import Shard
from tests.support.datasets import KINDS, encoded, read_records, write_images, write_tar
from tests.support.paths import ROOT
from tests.support.processes import run, start
from tests.support.ranks import launch


@pytest.fixture
def model(checkpoint):
    return ["--model", str(checkpoint("apple")), "--image-size", "64", "--max-tokens", "2"]


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "photos", range(4))


def test_exit_codes_and_the_summary(model, folder, tmp_path, capfd):
    command = [str(folder), "--output", str(tmp_path / "out.jsonl"), *model]
    assert main([*command, "--json"]) == 0
    out, err = capfd.readouterr()
    summary = json.loads(out)
    assert err == ""
    assert (summary["answered"], summary["errors"], summary["skipped"], summary["total"]) == (4, 0, 0, 4)
    (folder / "broken.png").write_bytes(b"no")
    assert main(command) == 3
    assert "0 images answered, 1 errors, 4 done before;" in capfd.readouterr().err
    assert main([*command, "--quiet"]) == 3  # its record is still an error
    assert capfd.readouterr() == ("", "")
    assert main(command) == 3
    assert "5 done before (1 errors; --retry-errors)" in capfd.readouterr().err
    (folder / "broken.png").write_bytes(encoded(9))
    assert main([*command, "--retry-errors", "--quiet"]) == 0
    assert main([*command, "--prompt", "Who?"]) == 2
    assert "--append-as NAME" in capfd.readouterr().err


def test_keys_that_come_twice_are_told(model, tmp_path, capfd):
    shard = write_tar(tmp_path / "s.tar", [("a.png", encoded(1)), ("b.png", encoded(2)), ("a.png", encoded(3))])
    assert main([str(shard), "--output", str(tmp_path / "out.jsonl"), *model]) == 3
    assert "warning: 1 images have the key of an earlier one (the first is s.tar/a)" in capfd.readouterr().err


def test_standard_input_and_output(model, folder, monkeypatch, capfd):
    listed = "\n".join(str(folder / f"{i}.png") for i in range(3))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed.encode())))
    assert main(["-", "--output", "-", *model, "--json"]) == 0
    out, err = capfd.readouterr()
    assert [json.loads(line)["key"] for line in out.splitlines()] == listed.split("\n")
    assert json.loads(err)["answered"] == 3


def test_the_bar_of_a_terminal(model, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main([str(folder), "--output", str(tmp_path / "out.jsonl"), *model]) == 0
    err = capsys.readouterr().err
    assert "4/4" in err
    assert "errors=0" in err
    assert "hits=0" in err


@pytest.mark.parametrize("ranks", [2])
def test_ranks_of_mlx_launch_take_their_parts(model, folder, tmp_path, monkeypatch, ranks):
    assert main([str(folder), "--output", str(tmp_path / "whole.jsonl"), *model, "--quiet"]) == 0
    (tmp_path / "hosts.json").write_text(json.dumps([["127.0.0.1:1"]] * ranks))
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts.json"))
    for rank in range(ranks):
        monkeypatch.setenv("MLX_RANK", str(rank))
        assert main([str(folder), "--output", str(tmp_path / "out.jsonl"), *model, "--quiet"]) == 0
    assert (tmp_path / f"out-{ranks - 1}of{ranks}.jsonl").is_file()
    together = sorted(read_records(tmp_path, "jsonl"), key=lambda record: record["key"])
    assert together == read_records(tmp_path, "jsonl", "whole")


@pytest.mark.skipif(sys.platform != "linux", reason="finds the rank in /proc")
def test_a_rank_of_mlx_launch_that_is_killed_harms_no_other(model, folder, tmp_path):
    write_images(folder, range(4, 60))
    command = ["mlx_fastvlm.caption", str(folder), "--output", str(tmp_path / "out.jsonl"), *model, "--quiet"]
    command += ["--batch-size", "1"]
    parts = [tmp_path / f"out-{rank}of2.jsonl" for rank in range(2)]

    def kill_first():
        """Once both have begun."""
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and not all(part.is_file() and part.stat().st_size for part in parts):
            time.sleep(0.01)
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (process / "environ").read_bytes().split(b"\0")
                if b"MLX_RANK=0" in variables and str(tmp_path).encode() in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)

    killer = threading.Thread(target=kill_first)
    killer.start()
    ended = launch(command)
    killer.join()
    assert "another rank has ended with an error" in ended.stderr
    of_second = {f"{i}.png" for i in range(60) if Shard(1, 2).has(f"{i}.png")}
    assert {record["key"] for record in read_records(tmp_path, "jsonl", "out-1of2")} == of_second
    assert launch(command).returncode == 0
    assert main([str(folder), "--output", str(tmp_path / "whole.jsonl"), *model, "--quiet"]) == 0
    together = sorted(read_records(tmp_path, "jsonl"), key=lambda record: record["key"])
    assert together == sorted(read_records(tmp_path, "jsonl", "whole"), key=lambda record: record["key"])


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_run_again(model, folder, tmp_path, kind):
    write_images(folder, range(4, 40))
    output = tmp_path / f"out.{kind}"
    command = [sys.executable, "-m", "mlx_fastvlm.caption", folder, "--output", output, *model]
    command += ["--batch-size", "2", "--records-per-file", "7"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = start(command, env=environment)
    while process.poll() is None and not any(file.stat().st_size for file in tmp_path.glob("*out*") if file.is_file()):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = run(command, env=environment)
    assert finished.returncode == 0, finished.stderr
    assert sorted(record["key"] for record in read_records(tmp_path, kind)) == sorted(f"{i}.png" for i in range(40))


def test_ctrl_c(model, folder, tmp_path, monkeypatch, capfd):
    def interrupt(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "step", interrupt)
        assert main([str(folder), "--output", str(tmp_path / "out.jsonl"), *model]) == 130
    assert capfd.readouterr().err.endswith("interrupted\n")
    assert main([str(folder), "--output", str(tmp_path / "out.jsonl"), *model]) == 0
