"""Schemas that never end, that are too costly, or that no answer keeps to: an error or an answer in time, and the
server goes on."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlx_fastvlm.generation import constraints, options
from tests.support import guidance
from tests.support.server import chat, running, wait_for

pytestmark = pytest.mark.skipif(not guidance.REAL, reason="needs llguidance, of the extra constraints")
CHAT = "/v1/chat/completions"
STRING = {"type": "string"}


@pytest.fixture(scope="module")
def server():
    with running(max_rows=2) as server:
        yield server


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


def asked(schema, **fields):
    format = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    return chat("Go on.", response_format=format, **fields)


ENDLESS = {
    "itself": {"$ref": "#"},
    "two that name each other": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
    },
    "lists of lists without end": {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    "no answer": {"allOf": [{"type": "string"}, {"type": "integer"}]},
    "a pattern that explodes": {"type": "string", "pattern": "(a|aa){1,1000}(b|bb){1,1000}(a|b){1,9999}$"},
    "a huge count": {"type": "array", "items": STRING, "minItems": 10**9},
    "all combinations": {"allOf": [{"anyOf": [{"minimum": i}, {"maximum": -i}]} for i in range(400)]},
    "thousands of properties": {"properties": {f"p{i}": {"enum": [f"{i}"]} for i in range(1000)}, "type": "object"},
    "references by the thousand": {
        "$ref": "#/$defs/d0",
        "$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)} | {"d60": STRING},
    },
}


@pytest.mark.parametrize("case", ENDLESS)
def test_no_schema_holds_the_server(server, client, case):
    """Refused with status 400, or an answer that ends with its length; never a fault, and others are served."""
    response = client.post(CHAT, json=asked(ENDLESS[case], max_tokens=8))
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        error = response.json()["error"]
        assert error["param"] == "json_schema"
        assert "\n" not in error["message"]
    assert client.post(CHAT, json=chat("Hello.", max_tokens=1)).status_code == 200
    wait_for(lambda: server.service.worker.rows == 0)


def test_an_answer_without_end_is_cut(client):
    """The length ends it, and the finish reason says so."""
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 1000}
    response = client.post(CHAT, json=asked(schema, max_tokens=40)).json()
    assert response["choices"][0]["finish_reason"] == "length"
    assert response["usage"]["completion_tokens"] == 40


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "schema", [{"type": "nonsense"}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "("}], ids=str
)
def test_what_is_no_schema_is_refused_before_anything_runs(server, client, schema, stream):
    steps = []
    engine = server.service.worker.engine
    step = engine.step
    engine.step = lambda: steps.append(1) or step()
    try:
        response = client.post(CHAT, json=asked(schema, stream=stream))
    finally:
        engine.step = step
    assert (response.status_code, response.json()["error"]["param"]) == (400, "json_schema")
    assert not steps


def test_too_many_properties_are_refused(client):
    schema = {"type": "object", "properties": {f"p{i}": STRING for i in range(5000)}}
    response = client.post(CHAT, json=asked(schema))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "json_schema")
    assert "too big" in response.json()["error"]["message"]


def test_answers_go_on_while_a_schema_is_compiled(client, monkeypatch):
    threads, go_on, compiled = [], threading.Event(), constraints._Vocabulary.compile

    def held(*arguments):
        threads.append(threading.current_thread().name)
        assert go_on.wait(60)
        return compiled(*arguments)

    monkeypatch.setattr(constraints._Vocabulary, "compile", held)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, CHAT, json=asked({"type": "boolean"}, max_tokens=8))
        try:
            wait_for(lambda: threads)
            other = client.post(CHAT, json=chat("Hello.", max_tokens=20, min_tokens=20))
            assert other.json()["usage"]["completion_tokens"] == 20
            assert not waiting.done()
        finally:
            go_on.set()
        assert waiting.result(60).json()["choices"][0]["message"]["content"] in ("true", "false")
    assert [name.startswith("prepare") for name in threads] == [True]


def test_python_goes_on_while_a_schema_is_compiled(server):
    """llguidance lets go of Python's lock, so that the loop and the worker's thread can go on beside it."""
    schema = {"type": "object", "properties": {f"q{i}": STRING for i in range(2000)}}
    processor, turns, seen = server.service.worker.engine.processor, [0], []

    def compiled():
        seen.append(turns[0])
        constraints.Grammar("json_schema", schema, processor, processor.tokenizer.get_vocab_size())
        seen.append(turns[0])

    thread = threading.Thread(target=compiled)
    thread.start()
    while thread.is_alive():
        thread.join(0.0001)
        turns[0] += 1
    assert seen[1] - seen[0] >= 10


def test_the_worker_looks_at_no_schema(client, monkeypatch):
    """It was looked at when the request was prepared; a large one takes a while each time."""
    threads, describe = set(), options.describe

    def noted(*arguments):
        threads.add(threading.current_thread().name.partition("_")[0])
        return describe(*arguments)

    monkeypatch.setattr(options, "describe", noted)
    assert client.post(CHAT, json=asked({"type": "boolean"}, n=2, max_tokens=8)).status_code == 200
    assert threads == {"prepare"}
