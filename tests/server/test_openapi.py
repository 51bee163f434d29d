"""The served description is the server: its routes, the fields of its tables, and what it reads and says."""

import json

import pytest

from mlx_fastvlm.errors import UsageError
from mlx_fastvlm.generation.options import GenerationOptions
from mlx_fastvlm.server import app, openapi
from mlx_fastvlm.server.dialect import chat, completions, decisions, responses, sampling
from mlx_fastvlm.server.dialect.errors import RequestError
from mlx_fastvlm.server.service import Service
from mlx_fastvlm.server.settings import ServerSettings
from tests.server.dialect.bodies import PLAIN, SERVED, image_part
from tests.server.dialect.test_tables import HONOURED, VALUES
from tests.support.server import running

validator = pytest.importorskip("jsonschema", reason="needs jsonschema, of the extra test").Draft202012Validator
PATHS = {
    "/v1/chat/completions": chat,
    "/v1/completions": completions,
    "/v1/responses": responses,
    "/v1/decisions": decisions,
}


@pytest.fixture(scope="module")
def document():
    with running() as server, server.client() as client:
        response = client.get("/openapi.json")
        assert response.headers["content-type"] == "application/json"
        yield response.json()


def schema(document, path):
    return document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]


def test_every_route_is_in_it(document):
    guarded = app.make_app(Service(ServerSettings(), lambda: None))._app
    routes = {route.path.replace(":path", "") for route in guarded._app.routes}
    files = {path for path in routes if path.startswith("/page/")}
    assert files
    assert set(document["paths"]) == routes - files
    methods = {path: set(operations) for path, operations in document["paths"].items()}
    assert all(methods[path] == {"post" if path in PATHS else "get"} for path in methods)


@pytest.mark.parametrize("path", PATHS)
def test_every_field_is_in_it(document, path):
    dialect = PATHS[path]
    properties = schema(document, path)["properties"]
    assert list(properties) == list(dialect.FIELDS)
    for name, decision in dialect.FIELDS.items():
        assert decision.note in properties[name]["description"]


@pytest.mark.parametrize("path", PATHS)
def test_it_is_a_schema_and_no_narrower_than_the_server(document, path):
    """What is read is described: a field's value that the schema rules out is refused."""
    dialect, plain = PATHS[path], PLAIN[PATHS[path]]
    validator.check_schema(schema(document, path))
    check = validator(PATHS[path].BODY)
    check.validate(plain)
    honoured = [value for value, _ in HONOURED[dialect].values()]
    numbers, parts = [-1, 0, 0.0, 2.5, 17, 2**40, 1e300], [[image_part()], [{"type": "text", "text": "a"}]]
    values = [*VALUES, *numbers, *parts, *honoured, [], {}, "", ["a", 1], "a" * 501, [[]], [{}], {"format": {}}]
    read = 0
    for name in [*dialect.FIELDS, "unheard_of"]:
        for value in values:
            body = {**plain, name: value}
            try:
                ask = dialect.read(json.loads(json.dumps(body)), SERVED)
                options = {key: given for key, given in ask.options.items() if key not in ("json_schema", "video")}
                GenerationOptions(**options)
            except (RequestError, UsageError):  # refused, whatever the schema says: some rules are beyond it
                continue
            if name == "image_size":  # the processor knows which sizes there are
                continue
            read += 1
            assert check.is_valid(body), (name, value)
    assert read > 100


@pytest.mark.parametrize("path", PATHS)
def test_it_is_hardly_wider_than_the_server(document, path):
    """Every type that a field's schema allows has values that are read: else it would promise what is refused."""
    dialect = PATHS[path]
    for name, (value, _) in HONOURED[dialect].items():
        described = schema(document, path)["properties"][name]
        assert validator(described).is_valid(value)
        wrong = [other for other in (True, "a", 3.5, [[]], {"a": {}}) if type(other) is not type(value)]
        assert not all(validator(described).is_valid(other) for other in wrong), name


def is_number(name):
    return sampling.SAMPLING[name].shape.schema.get("type") in ("number", "integer")


@pytest.mark.parametrize("name", [name for name in sampling.SAMPLING if is_number(name)])
def test_ranges_are_the_librarys(name):
    described = sampling.SAMPLING[name].shape.schema
    numbers = [-3, -2, -1, -0.5, 0, 1e-9, 0.5, 1, 1.5, 2, 3, 2**62, 2**63 - 1, 2**63]
    values = [value for value in numbers if isinstance(value, int) or described["type"] == "number"]
    assert values
    for value in values:
        try:
            GenerationOptions(**{"max_tokens": 2**64, name: value})
            taken = True
        except UsageError:
            taken = False
        assert taken == validator(described).is_valid(value), value


def test_limits_are_this_servers():
    with running(name="mine", max_tokens=7, max_n=3, max_images=2) as server, server.client() as client:
        found = schema(client.get("/openapi.json").json(), "/v1/chat/completions")["properties"]
    first = {name: found[name]["anyOf"][0] for name in ("model", "max_completion_tokens", "n", "frames", "image_size")}
    assert first["model"]["enum"] == ["mine", "demo"]
    maximum = {name: schema.get("maximum") for name, schema in first.items()}
    assert maximum == {"model": None, "max_completion_tokens": 7, "n": 3, "frames": 2, "image_size": 1024}


def test_what_it_says_of_answers(document):
    """Answers and errors are as described."""
    with running() as server, server.client() as client:
        for path, dialect in PATHS.items():
            found = document["paths"][path]["post"]["responses"]
            bodies = {200: {**PLAIN[dialect]}, 400: {}, 404: {**PLAIN[dialect], "model": "gpt-6"}}
            for status, body in bodies.items():
                response = client.post(path, json=body)
                assert response.status_code == status
                shape = found[str(status)]["content"]["application/json"]["schema"]
                validator({**shape, "components": document["components"]}).validate(response.json())
        for path, (_, media, shape) in openapi.ASKED.items():
            response = client.get(path.replace("{id}", "demo"))
            assert response.status_code == 200
            assert response.headers["content-type"].startswith(media)
            validator(shape).validate(response.json() if media == "application/json" else response.text)
        assert client.get("/openapi.json").json() == document


def test_what_it_says_of_streams(document):
    """Each event is as described."""
    with running() as server, server.client() as client:
        for path in set(PATHS) - {"/v1/decisions"}:
            content = document["paths"][path]["post"]["responses"]["200"]["content"]
            text = client.post(path, json={**PLAIN[PATHS[path]], "stream": True}).text
            events = [dict(line.split(": ", 1) for line in event.splitlines()) for event in text.strip().split("\n\n")]
            assert len(events) > 2
            for event in events:
                validator(content["text/event-stream"]["schema"]).validate(event)
