"""Who may ask: host, origin and key, before anything else is looked at."""

import asyncio
import json
import logging

import pytest

from mlx_fastvlm.errors import UsageError
from mlx_fastvlm.server.guard import Guard
from mlx_fastvlm.server.settings import ServerSettings

KEYS = ("first-key-123", "second-key-456")


def ask(settings, path="/v1/models", method="GET", headers=None, host=b"localhost:8080"):
    """Status, headers and body of what the guard answers, or 200 with what it lets through."""
    sent, passed = [], []

    async def app(scope, receive, send):
        passed.append(scope["state"].get("key"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append(message)

    given = [(b"host", host)] if host is not None else []
    given += [(name.lower().encode(), value.encode("latin-1")) for name, value in headers or []]
    scope = {"type": "http", "method": method, "path": path, "headers": given, "state": {}}
    asyncio.run(Guard(app, settings)(scope, None, send))
    status = sent[0]["status"]
    assert bool(passed) == (status == 200)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    if status not in (200, 204):
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"].endswith(".")
    return status, dict(sent[0]["headers"]), passed[0] if passed else None


@pytest.mark.parametrize("host", [b"localhost", b"LOCALHOST:8080", b"127.0.0.1:1", b"[::1]:8080", b"[::1]"])
def test_its_own_names(host):
    assert ask(ServerSettings(), host=host)[0] == 200


FOREIGN = [
    b"attacker.example",
    b"attacker.example:8080",
    b"localhost.attacker.example",
    b"127.0.0.1.attacker.example",
    b"attacker.example@127.0.0.1",
    b"127.0.0.1:8080@attacker.example",
    b"localhost:80:80",
    b"localhost:",
    b"localhost:x",
    b"",
    b"192.168.1.7",
    b"0.0.0.0",
    b"[::1",
    b"[::1]x",
    b"::1",
    b"localhost, attacker.example",
    b"\xff",
    None,
]


@pytest.mark.parametrize("host", FOREIGN, ids=repr)
def test_other_names_are_refused_also_with_a_key(host):
    """A page's own name can be made to lead to 127.0.0.1; its requests still say the name."""
    settings = ServerSettings(api_keys=KEYS)
    assert ask(settings, host=host, headers=[("Authorization", f"Bearer {KEYS[0]}")])[0] == 421
    assert ask(settings, "/health", host=host)[0] == 421


def test_two_host_headers():
    assert ask(ServerSettings(), headers=[("Host", "localhost")])[0] == 421


def test_further_names_and_addresses():
    named = ServerSettings(allow_hosts=("Mac.local",))
    assert ask(named, host=b"mac.local:8080")[0] == 200
    assert ask(named, host=b"other.local")[0] == 421
    everywhere = ServerSettings(host="0.0.0.0", api_keys=KEYS)
    for host, status in ((b"192.168.1.7:8080", 200), (b"[fe80::1]:8080", 200), (b"attacker.example", 421)):
        assert ask(everywhere, "/health", host=host)[0] == status
    one = ServerSettings(host="192.168.1.7", api_keys=KEYS)
    assert ask(one, "/health", host=b"192.168.1.7")[0] == 200
    assert ask(one, "/health", host=b"192.168.1.8")[0] == 421


@pytest.mark.parametrize(
    "origin", ["https://attacker.example", "null", "http://localhost:3000", "http://localhost", "file://", ""]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_pages_of_other_origins_are_refused(origin, method):
    status, headers, _ = ask(ServerSettings(), method=method, headers=[("Origin", origin)])
    assert status == 403
    assert not [name for name in headers if name.startswith(b"access-control")]


def test_its_own_page_may_ask():
    status, headers, _ = ask(ServerSettings(), headers=[("Origin", "http://localhost:8080")])
    assert status == 200
    assert b"access-control-allow-origin" not in headers


def test_an_origin_that_was_allowed():
    settings = ServerSettings(allow_origins=("https://chat.example",), api_keys=KEYS)
    origin = ("Origin", "https://chat.example")
    status, headers, _ = ask(settings, headers=[origin, ("Authorization", f"Bearer {KEYS[0]}")])
    assert (status, headers[b"access-control-allow-origin"]) == (200, b"https://chat.example")
    assert b"access-control-allow-credentials" not in headers
    status, headers, _ = ask(settings, method="OPTIONS", headers=[origin])
    assert (status, headers[b"access-control-allow-headers"]) == (204, b"authorization, content-type")
    assert ask(settings, headers=[origin])[0] == 401
    assert ask(settings, headers=[origin, ("Origin", "https://attacker.example")])[0] == 403
    assert ask(settings, headers=[("Origin", "https://chat.example.attacker.example")])[0] == 403


def test_each_key_is_taken_and_known_apart():
    settings = ServerSettings(api_keys=KEYS)
    for place, key in enumerate(KEYS):
        assert ask(settings, headers=[("authorization", f"bearer  {key} ")])[::2] == (200, place)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "")],
        [("Authorization", KEYS[0])],
        [("Authorization", f"Basic {KEYS[0]}")],
        [("Authorization", f"Bearer {KEYS[0]}x")],
        [("Authorization", f"Bearer {KEYS[0][:-1]}")],
        [("Authorization", "Bearer ")],
        [("Authorization", "Bearer \xff\xfe")],
        [("Authorization", f"Bearer {KEYS[0]}"), ("Authorization", "Bearer other")],
        [("X-Api-Key", KEYS[0])],
    ],
    ids=str,
)
def test_no_key_or_another(headers):
    status, answered, _ = ask(ServerSettings(api_keys=KEYS), headers=headers)
    assert (status, answered[b"www-authenticate"]) == (401, b"Bearer")


def test_the_key_counts_in_no_query():
    settings = ServerSettings(api_keys=KEYS)
    assert ask(settings, f"/v1/models?api_key={KEYS[0]}")[0] == 401


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/", "GET", 200),
        ("/health", "GET", 200),
        ("/health", "HEAD", 200),
        ("/ready", "GET", 200),
        ("/page/app.js", "GET", 200),
        ("/", "POST", 401),
        ("/health", "POST", 401),
        ("/metrics", "GET", 401),
        ("/v1/models", "GET", 401),
        ("/page", "GET", 401),
        ("/nothing", "GET", 401),
        ("//", "GET", 401),
    ],
)
def test_what_needs_a_key(path, method, status):
    assert ask(ServerSettings(api_keys=KEYS), path, method)[0] == status


def test_keys_are_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    ask(ServerSettings(api_keys=KEYS), headers=[("Authorization", f"Bearer {KEYS[0]}")])
    assert [known for _, known in compared] == [key.encode() for key in KEYS]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "", "mac.local", "0"])
def test_other_machines_need_a_key(host):
    with pytest.raises(UsageError, match="key"):
        ServerSettings(host=host)
    assert ServerSettings(host=host, api_keys=("long-enough",)).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_this_machine_needs_none(host):
    assert ServerSettings(host=host).api_keys == ()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("port", 65536),
        ("port", "8080"),
        ("max_rows", 0),
        ("max_queue", -1),
        ("drain", 0),
        ("drain", float("nan")),
        ("request_timeout", float("inf")),
        ("api_keys", ("short",)),
        ("api_keys", ("with space in it",)),
        ("api_keys", ("ünlauter-key",)),
        ("allow_origins", ("*",)),
        ("allow_origins", ("https://chat.example/",)),
        ("allow_origins", ("chat.example",)),
        ("allow_hosts", ("*",)),
        ("allow_hosts", ("http://mac.local",)),
        ("log_level", "loud"),
    ],
    ids=str,
)
def test_settings_that_can_not_be(setting, value):
    with pytest.raises(UsageError) as raised:
        ServerSettings(**{setting: value})
    assert setting != "api_keys" or value[0] not in str(raised.value)


def test_an_image_root_is_a_folder(tmp_path):
    assert ServerSettings(image_root=tmp_path).image_root == tmp_path
    with pytest.raises(UsageError, match="not a folder"):
        ServerSettings(image_root=tmp_path / "missing")


def test_refusals_log_nothing(caplog):
    with caplog.at_level(logging.DEBUG):
        ask(ServerSettings(api_keys=KEYS), headers=[("Authorization", "Bearer secret")])
    assert "secret" not in caplog.text
