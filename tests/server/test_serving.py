"""The command: what it refuses at the start, how it ends, and that a fault ends it with an error."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from tests.support.processes import run, start
from tests.support.server import chat, chunks

SERVER = [sys.executable, "-m", "mlx_fastvlm.server"]
CHAT = "/v1/chat/completions"


class Process:
    """The command in a process of its own."""

    def __init__(self, *flags, command=SERVER, **options):
        self.process = start([*command, "--model", "demo", "--port", "0", *flags], **options)
        line = json.loads(self.process.stderr.readline())
        assert line["event"] == "ready", line
        self.url = f"http://127.0.0.1:{line['port']}"
        self.lines = []
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(30)

    def client(self):
        return httpx.Client(base_url=self.url, timeout=60)

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)


def begun(client, tokens):
    """A stream that has begun."""
    body = chat("Hello", max_tokens=tokens, min_tokens=tokens, stream=True)
    response = client.send(client.build_request("POST", CHAT, json=body), stream=True)
    lines = response.iter_lines()
    return [next(lines)], lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_answers_be_finished(number):
    with Process() as server, server.client() as client:
        first, rest = begun(client, 60)
        server.signal(number)
        time.sleep(0.3)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health")
        found, done = chunks([*first, *rest])
        assert done
        assert found[-1]["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(30) == 0
        assert "Traceback" not in "".join(server.lines)


def test_answers_that_take_too_long_are_told():
    with Process("--drain", "0.3") as server, server.client() as client:
        first, rest = begun(client, 4000)
        server.signal()
        found, _ = chunks([*first, *rest])
        assert found[-1]["error"]["code"] == "unavailable"
        assert server.process.wait(30) == 0


def test_a_second_signal_ends_it_at_once():
    with Process("--drain", "600") as server, server.client() as client:
        _held = begun(client, 4000)
        server.signal()
        time.sleep(0.5)
        assert server.process.poll() is None
        server.signal()
        assert server.process.wait(20) == 0


LOST = """
import sys, time
from mlx_fastvlm import Engine
from mlx_fastvlm.server.__main__ import main
def step(engine):
    {how}
Engine.step = step
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("how", ["time.sleep(1000)", "raise SystemExit(0)"])
def test_a_lost_worker_ends_the_process_with_an_error(how):
    command = [sys.executable, "-c", LOST.format(how=how)]
    with Process("--hang-limit", "0.3", "--exit-after", "0.3", command=command) as server, server.client() as client:
        response = client.post(CHAT, json=chat("Hello"))
        assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
        assert server.process.wait(30) not in (0, None)


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--model", "/nowhere/at/all"], 1, "/nowhere/at/all"),
        (["--host", "0.0.0.0"], 2, "FASTVLM_API_KEY"),
        (["--image-root", "/nowhere"], 2, "image_root"),
        (["--max-rows", "0"], 2, "max_rows"),
        (["--max-rows", "x"], 2, "--max-rows"),
        (["--modle", "x"], 2, "did you mean --model?"),
        (["--api-key", "short"], 2, "8 visible"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_can_not_be_served(flags, code, said):
    done = run([*SERVER, "--model", "demo", "--port", "0", *flags], env={"PATH": "", "PYTHONPATH": _path()})
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def _path():
    return ":".join(filter(None, sys.path))


def test_an_address_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = run([*SERVER, "--model", "demo", "--port", other.getsockname()[1]])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: The server can't listen on 127.0.0.1 port ")
    assert done.stderr.count("\n") == 1


def test_the_key_from_the_environment():
    with Process(env={"FASTVLM_API_KEY": "key-of-env-1", "PATH": "", "PYTHONPATH": _path()}) as server:
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        key = {"Authorization": "Bearer key-of-env-1"}
        assert httpx.get(f"{server.url}/v1/models", headers=key).json()["data"][0]["id"] == "demo"
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_ctrl_c_while_the_model_loads():
    code = LOST.replace("Engine.step = step", "import mlx_fastvlm.server.__main__ as m; m.load_chosen_model = step")
    process = start(
        [sys.executable, "-c", code.format(how="print('loading', flush=True); time.sleep(1000)"), "--port", "0"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert "Traceback" not in error
