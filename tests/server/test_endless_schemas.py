"""Schemas that never end, that are too costly, or that no answer keeps to: an error or an answer in time, and the
server goes on."""

import pytest

from tests.support import guidance
from tests.support.server import chat, running, wait_for

pytestmark = pytest.mark.skipif(not guidance.REAL, reason="llguidance is not installed")
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
