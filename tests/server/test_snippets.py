"""Requests that the page shows as a command and as a program: both say exactly the request, and work."""

import base64
import json
import os
import runpy
import shlex
import shutil
import subprocess

import pytest

from tests.support.node import needs_node, node
from tests.support.paths import ROOT
from tests.support.server import running

pytestmark = needs_node

SCENE = ROOT / "examples" / "images" / "shapes-1.png"
URI = "data:image/png;base64," + base64.b64encode(SCENE.read_bytes()).decode()
KEY = "sesame-open-up"

SNIPPETS = """
import { curl, python } from "./mlx_fastvlm/server/page/snippets.js";
const { body, options } = JSON.parse(process.env.REQUEST);
console.log(JSON.stringify({ curl: curl(body, options), python: python(body, options) }));
"""
ODD = 'It\'s "$HOME" `id` $(id) \\n %s !! \N{FOX FACE} \N{LINE SEPARATOR} é\ttab\nline \'\'\' """ \\'


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


def snippets(body, base, key=False):
    request = json.dumps({"body": body, "options": {"base": f"{base}/v1/", "key": key}})
    return json.loads(node("--input-type=module", "--eval", SNIPPETS, REQUEST=request))


def asking(text, *uris, **fields):
    parts = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
    return {
        "model": "demo",
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}],
        **fields,
    }


@pytest.mark.parametrize("uris", [(), (URI,), (URI, URI.replace("png", "jpeg"), URI)], ids=len)
def test_curl_is_valid_shell_that_sends_the_request(uris, tmp_path):
    """With a curl that only notes what it is given."""
    body = asking(ODD, *uris, temperature=0.5, stream=True, stream_options={"include_usage": True})
    code = snippets(body, "http://127.0.0.1:8080", key=True)["curl"]
    assert "base64," not in code or len(code) < 3000
    assert subprocess.run(["bash", "-n"], input=code, text=True).returncode == 0
    shlex.split(code)
    for name in ("image-1.png", "image-2.jpeg", "image-2.jpg"):
        shutil.copy(SCENE, tmp_path / name)
    fake = tmp_path / "bin" / "curl"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nfor word; do printf "%s\\0" "$word" >> words; done\ncat > input\n')
    fake.chmod(0o755)
    path = f"{fake.parent}:{os.environ['PATH']}"
    for shell in filter(shutil.which, ("sh", "bash", "zsh")):
        (tmp_path / "words").unlink(missing_ok=True)
        environment = {"PATH": path, "FASTVLM_API_KEY": KEY}
        subprocess.run([shell, "-c", code], cwd=tmp_path, env=environment, check=True, stdin=subprocess.DEVNULL)
        words = (tmp_path / "words").read_text(encoding="utf-8").split("\0")[:-1]
        assert words[0] == "http://127.0.0.1:8080/v1/chat/completions"
        assert f"Authorization: Bearer {KEY}" in words
        sent = (tmp_path / "input").read_text(encoding="utf-8") if uris else words[words.index("-d") + 1]
        expected = {name: value for name, value in body.items() if not name.startswith("stream")}
        assert json.loads(sent) == expected


def test_curl_against_the_server(server, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    shutil.copy(SCENE, tmp_path / "image-1.png")
    code = snippets(asking("Describe the image.", URI, image_size=256), server.url)["curl"]
    done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "star" in json.loads(done.stdout)["choices"][0]["message"]["content"]


def test_python_against_the_server(server, tmp_path, monkeypatch, capsys):
    pytest.importorskip("openai", reason="needs openai, of the extra test")
    shutil.copy(SCENE, tmp_path / "image-1.png")
    monkeypatch.chdir(tmp_path)
    body = asking("Describe the image.", URI, max_completion_tokens=60, temperature=0, image_size=256, stream=True)
    (tmp_path / "program.py").write_text(snippets(body, server.url)["python"], encoding="utf-8")
    runpy.run_path("program.py")
    with server.client() as client:
        del body["stream"]
        expected = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert capsys.readouterr().out.strip() == expected
    assert "star" in expected


@pytest.mark.parametrize("model", ["demo", None])
def test_python_calls_with_the_request(model, monkeypatch, capsys):
    """With a client that only notes what it is given."""
    schema = {"type": "object", "properties": {"é": {"enum": [True, False, None, 1.5, -3, 1e30, ODD]}}, "required": []}
    body = {
        "model": model,
        "messages": [{"role": "system", "content": ODD}, {"role": "user", "content": "Hello."}],
        "temperature": 0.5,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}},
        "image_size": 512,
    }
    if model is None:
        del body["model"]
    code = snippets(body, "http://127.0.0.1:8080", key=True)["python"]
    assert KEY not in code
    calls = []
    monkeypatch.setenv("FASTVLM_API_KEY", KEY)
    openai = pytest.importorskip("openai", reason="needs openai, of the extra test")
    monkeypatch.setattr(openai, "OpenAI", lambda **options: Noting(options, calls))
    exec(compile(code, "snippet", "exec"), {})
    assert capsys.readouterr().out == "An answer.\n"
    ((options, call),) = calls
    assert options == {"base_url": "http://127.0.0.1:8080/v1/", "api_key": KEY}
    assert call.pop("extra_body") == {"image_size": 512}
    assert call.pop("model") == "demo"
    assert call == {name: value for name, value in body.items() if name not in ("model", "image_size")}


class Noting:
    """Takes the place of the client, and of all that is reached through it."""

    def __init__(self, options, calls):
        self.options, self.calls = options, calls
        self.chat = self.completions = self.message = self.models = self
        self.choices = self.data = [self]
        self.content, self.id = "An answer.", "demo"

    def create(self, **call):
        self.calls.append((self.options, call))
        return self

    def list(self):
        return self
