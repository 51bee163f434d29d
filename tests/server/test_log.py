"""What the server writes down: sizes and times of each request, and nobody's words or keys."""

import io
import json
import logging
import time

import pytest

from mlx_fastvlm.server import log as log_module
from mlx_fastvlm.server.log import JsonLines, where
from tests.support.server import chat, running

SECRETS = ("prompt-secret", "answer-secret", "key-secret-123", "path-secret", "header-secret", "field-secret")


@pytest.fixture
def lines(monkeypatch):
    """The server's log at its most talkative, as parsed lines."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    loggers = [logging.getLogger(name) for name in ("mlx_fastvlm.server", "uvicorn", "asyncio")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    log_module.set_up("debug")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    for logger, (handlers, propagate, level) in zip(loggers, before):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_a_line_for_each_request(lines):
    key = {"Authorization": "Bearer key-secret-123"}
    with running(api_keys=("key-secret-123",)) as server, server.client(headers=key) as client:
        answered = client.post("/v1/chat/completions", json=chat("prompt-secret", max_tokens=3, user="field-secret"))
        client.post("/v1/chat/completions", json=chat("prompt-secret", max_tokens=-1))
        client.post("/v1/chat/completions", content="prompt-secret", headers={"Content-Type": "application/json"})
        client.post("/v1/chat/completions", json=chat("prompt-secret", stop="answer-secret", stream=True, max_tokens=2))
        client.get("/path-secret?key=key-secret-123", headers={"X": "header-secret"})
        client.get("/ready?key=key-secret-123", headers={"Authorization": "Bearer header-secret"})
        client.get("/v1/models", headers={"Authorization": "Bearer header-secret", "User-Agent": "header-secret"})
        client.get("/v1/models/path-secret")
        client.get("/health", headers={"Host": "header-secret"})
        client.request("METHOD-secret", "/health")
        time.sleep(0.1)
    found = [line for line in lines() if line["event"] == "request"]
    assert [line["status"] for line in found] == [200, 400, 400, 200, 404, 200, 401, 404, 421, 405]
    whole = found[0]
    assert whole["id"] == answered.headers["x-request-id"]
    assert len({line["id"] for line in found}) == len(found)
    usage = answered.json()["usage"]
    assert (whole["prompt_tokens"], whole["answer_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert whole["endpoint"] == "/v1/chat/completions"
    assert 0 <= whole["queued_s"] <= whole["first_s"] <= whole["total_s"] < 60
    assert found[3]["stream"] is True
    assert found[4]["endpoint"] == "other"
    text = json.dumps(lines())
    assert [secret for secret in SECRETS if secret in text] == []


def test_a_prompt_counts_once_for_all_its_answers(lines):
    with running() as server, server.client() as client:
        body = chat("Hello", n=3, max_tokens=2, temperature=1)
        usage = client.post("/v1/chat/completions", json=body).json()["usage"]
        time.sleep(0.1)
    (line,) = (line for line in lines() if line["event"] == "request")
    assert (line["prompt_tokens"], line["answer_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert line["answers"] == 3


def test_an_error_nobody_thought_of(lines, monkeypatch):
    """Its place is told, its words are not."""

    def broken(*_):
        raise KeyError("prompt-secret")

    monkeypatch.setattr("mlx_fastvlm.server.asking.parse", broken)
    with running() as server, server.client() as client:
        response = client.post("/v1/chat/completions", json=chat("Hello"))
        assert response.status_code == 500
        monkeypatch.setattr("mlx_fastvlm.server.asking.wants_json", broken)
        assert client.post("/v1/chat/completions", json=chat("Hello")).status_code == 500
    assert "secret" not in json.dumps(lines()) + response.text
    told = [line["where"] for line in lines() if line["level"] == "error"]
    assert len(told) == 2
    assert all("KeyError" in place and "asking.py" in place for place in told)


def test_nobody_can_write_lines_of_his_own():
    record = logging.LogRecord("x", logging.INFO, "", 0, "request", (), None)
    record.fields = {"endpoint": 'a\n{"event": "request", "status": 200}\r\x1b[2J\u2028'}
    line = JsonLines().format(record)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["endpoint"] == record.fields["endpoint"]


def test_where_an_error_came_from():
    try:
        raise ValueError("prompt-secret")
    except ValueError as error:
        place = where(error)
    assert place.startswith("ValueError < ")
    assert "test_log.py" in place
    assert "secret" not in place
