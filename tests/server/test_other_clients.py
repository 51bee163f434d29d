"""langchain-openai and llm as people use them, against a server with the demo: what they ask for is what they get."""

import base64
import json
import os
import re
import subprocess
import sys
from typing import Literal

import pytest

from mlx_fastvlm import generate
from tests.support import guidance
from tests.support.paths import ROOT
from tests.support.server import running

SCENE = ROOT / "examples" / "images" / "shapes-1.png"
QUESTION = "Describe the image."
COLOURS, SHAPES = ("red", "blue", "green"), ("star", "circle", "ring")
real = pytest.mark.skipif(not guidance.REAL, reason="needs llguidance, of the extra constraints")


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


# LangChain


@pytest.fixture
def langchain(server):
    module = pytest.importorskip("langchain_openai", reason="needs langchain-openai, of the extra test")

    def make(**options):
        common = {"model": "demo", "base_url": f"{server.url}/v1", "api_key": "none", "max_retries": 0}
        return module.ChatOpenAI(**common, **options)

    return make


def asking(question=QUESTION):
    """As LangChain writes an image, whatever the provider."""
    messages = pytest.importorskip("langchain_core.messages", reason="needs langchain-openai, of the extra test")
    data = messages.content.create_image_block(
        base64=base64.b64encode(SCENE.read_bytes()).decode(), mime_type="image/png"
    )
    return [messages.HumanMessage(content=[{"type": "text", "text": question}, data])]


def seen(demo, question=QUESTION, **options):
    """The library's answer, the text before the image as LangChain's messages have it."""
    parts = [{"type": "text", "text": question}, {"type": "image", "image": str(SCENE)}]
    return generate(*demo, [{"role": "user", "content": parts}], **options)


def test_langchain_sees_an_image(langchain, demo):
    answer = langchain().invoke(asking())
    assert answer.content == seen(demo)
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata["input_tokens"] > 16


def test_langchains_limit_holds(langchain, demo):
    answer = langchain(max_tokens=4).invoke(asking())
    assert answer.content == seen(demo, max_tokens=4)
    assert answer.usage_metadata["output_tokens"] == 4
    assert answer.response_metadata["finish_reason"] == "length"


def test_langchains_options(langchain, demo):
    model = langchain(temperature=1.5, seed=3, stop=["and"], max_tokens=20)
    assert model.invoke(asking()).content == seen(demo, temperature=1.5, seed=3, stop=["and"], max_tokens=20)


def test_langchain_streams(langchain, demo):
    pieces = [chunk.text for chunk in langchain().stream(asking())]
    assert "".join(pieces) == seen(demo)
    assert sum(map(bool, pieces)) > 2


def test_langchain_by_responses(langchain, demo):
    """The same client by OpenAI's newer interface."""
    model = langchain(use_responses_api=True, max_tokens=4)
    assert model.invoke(asking()).text == seen(demo, max_tokens=4)


@real
def test_langchains_structured_output(langchain):
    pydantic = pytest.importorskip("pydantic", reason="needs pydantic, of the extra test")

    class Seen(pydantic.BaseModel):
        colour: Literal[COLOURS]
        shape: Literal[SHAPES]

    for strict in (None, True):
        found = langchain().with_structured_output(Seen, strict=strict).invoke(asking())
        assert isinstance(found, Seen)
    schema = {**Seen.model_json_schema(), "additionalProperties": False}
    assert langchain().with_structured_output(schema, method="json_schema").invoke(asking()) == found.model_dump()


def test_langchains_tools_are_refused(langchain):
    openai = pytest.importorskip("openai", reason="needs openai, of the extra test")
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    with pytest.raises(openai.BadRequestError, match="calls no tools"):
        langchain().bind_tools([tool]).invoke("Hello.")


# llm


@pytest.fixture
def llm(server, tmp_path):
    """Runs the command ``llm`` with the configuration that docs/server.md shows."""
    pytest.importorskip("llm", reason="needs llm, of the extra test")
    page = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```yaml\n(- model_id: fastvlm\n.*?)^```", page, re.M | re.S)
    config = shown.replace("http://127.0.0.1:8080", server.url).replace("apple/FastVLM-0.5B", "demo")
    assert config != shown
    (tmp_path / "extra-openai-models.yaml").write_text(config, encoding="utf-8")
    proxies = {"http_proxy", "https_proxy", "all_proxy"}
    env = {name: value for name, value in os.environ.items() if name.lower() not in proxies}
    env |= {"LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""}

    def run(*arguments):
        command = [sys.executable, "-m", "llm", "-m", "fastvlm", *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, cwd=tmp_path)

    return run


def test_llm_with_an_attachment(llm, demo):
    done = llm(QUESTION, "-a", str(SCENE), "-o", "max_tokens", "20", "--no-stream")
    assert done.returncode == 0, done.stderr
    assert done.stdout.removesuffix("\n") == seen(demo, max_tokens=20)


@real
def test_llm_with_a_schema(llm):
    schema = {"type": "object", "properties": {"colour": {"enum": COLOURS}, "shape": {"enum": SHAPES}}}
    schema |= {"required": ["colour", "shape"], "additionalProperties": False}
    done = llm(QUESTION, "-a", str(SCENE), "--schema", json.dumps(schema))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["colour"] in COLOURS
    assert found["shape"] in SHAPES


def test_llm_shows_what_is_wrong(llm):
    done = llm("Hello.", "-o", "temperature", "1.5", "-o", "max_tokens", "100000")
    assert done.returncode == 1
    assert "max_tokens must be at most 4096 here" in done.stderr
