"""Connections and bodies of those who mean no good: slow, huge, silent, many."""

import json
import socket
import threading
import time

import pytest

from mlx_fastvlm.server.body import Bodies
from mlx_fastvlm.server.dialect.errors import RequestError
from mlx_fastvlm.server.serving import allow_files
from mlx_fastvlm.server.settings import ServerSettings
from tests.support.server import chat, running, wait_for

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server():
    limits = {"head_timeout": 0.5, "body_timeout": 0.5, "write_timeout": 0.5, "max_body": 200_000}
    with running(max_connections=50, **limits) as server:
        yield server


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def head(length=None, path=CHAT, more=""):
    size = "" if length is None else f"Content-Length: {length}\r\n"
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{size}{more}\r\n".encode()


def received(raw):
    """All that comes until the other side closes, or a whole response was sent."""
    data = b""
    while True:
        try:
            piece = raw.recv(65536)
        except ConnectionResetError:
            return data
        data += piece
        start, _, body = data.partition(b"\r\n\r\n")
        if not piece or (b"content-length: %d" % len(body)) in start.lower():
            return data


def refusal(data):
    """Status and error object of a raw response."""
    start, _, body = data.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(start.split()[1]), error


def test_a_declared_length_beyond_the_limit(server):
    with connect(server) as raw:
        raw.sendall(head(10 * 2**30))
        assert refusal(received(raw))[0] == 413


def test_a_body_without_a_length_is_read_to_the_limit_only(server):
    """Ten gigabytes of chunks: refused after the limit, and the rest is not kept."""
    with connect(server) as raw:
        raw.sendall(head(more="Transfer-Encoding: chunked\r\n"))
        piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        sent = 0
        with pytest.raises((BrokenPipeError, ConnectionResetError, TimeoutError)):  # noqa: PT012  at some piece
            raw.settimeout(5)
            while sent < 10 * 2**30:
                raw.sendall(piece)
                sent += len(piece)
        assert server.service.bodies._held.total() == 0
    assert sent < 10 * 2**30


def test_a_body_in_chunks_of_one_byte_more(client):
    """No length is declared, so the bytes are counted."""
    pieces = (b" " * 1000 for _ in range(201))
    response = client.post(CHAT, content=pieces, headers={"Content-Type": "application/json"})
    assert response.status_code == 413


def test_a_body_of_the_allowed_size_and_one_byte_more(client):
    def padded(size):
        body = json.dumps(chat("Hello", max_tokens=1))
        return client.post(CHAT, content=body + " " * (size - len(body)), headers={"Content-Type": "application/json"})

    assert padded(200_000).status_code == 200
    assert padded(200_001).status_code == 413
    assert padded(200_001).json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize("content", [b"", b'{"messages": [', b'{"messages"'])
def test_a_slow_body(server, content):
    with connect(server) as raw:
        raw.sendall(head(1000) + content)
        assert refusal(received(raw))[0] == 408
    with connect(server) as raw:  # a byte now and then is no faster
        raw.sendall(head(1000))
        stop = threading.Event()

        def drip():
            while not stop.wait(0.05):
                raw.sendall(b" ")

        dripping = threading.Thread(target=drip)
        dripping.start()
        assert refusal(received(raw))[0] == 408
        stop.set()
        dripping.join(10)


def test_a_body_that_breaks_off(server):
    with connect(server) as raw:
        raw.sendall(head(1000) + b"{")
        wait_for(lambda: server.service.bodies._held)
    wait_for(lambda: not server.service.bodies._held)


@pytest.mark.parametrize(
    "start", [b"", b"G", b"GET /health HTTP/1.1\r\nHost: local", b"GET /health HTTP/1.1\r\nA: b\r\n"]
)
def test_heads_that_never_end(server, start):
    with connect(server) as raw:
        raw.sendall(start)
        assert received(raw) == b""


def test_a_second_head_that_never_ends(server):
    with connect(server) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in received(raw)
        raw.sendall(b"GET /hea")
        assert received(raw) == b""


def test_a_connection_may_rest_between_two_requests(server):
    with connect(server) as raw:
        for _ in range(2):
            raw.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in received(raw)
            time.sleep(0.8)  # longer than a head may take


def test_no_response_waits_for_its_acknowledgement(server, client):
    """Nagle's algorithm would hold each second piece of a response for the 40 ms of a delayed acknowledgement."""
    client.get("/health")
    sockets = [each.transport.get_extra_info("socket") for each in list(server._server.server_state.connections)]
    assert sockets
    assert all(each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in sockets)


def test_idle_connections_make_room(server, client):
    """A thousand, where there may be fifty, all silent: whoever asks is answered, and the silent are closed."""
    allow_files(3000)
    silent = [connect(server) for _ in range(1000)]
    try:
        for _ in range(5):
            with server.client() as other:
                assert other.get("/health").status_code == 200
            assert len(server._server.server_state.connections) <= server.settings.max_connections
    finally:
        for raw in silent:
            raw.close()


def test_a_client_that_reads_nothing(server):
    """Its connection ends, whatever is still to be sent."""

    def full():
        return any(connection.flow.write_paused for connection in list(server._server.server_state.connections))

    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", server.port))
        raw.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000)
        wait_for(full)
        wait_for(lambda: not full())


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 30_000 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"NONSENSE\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: attacker.example\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\n{}",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n{}",
    ],
    ids=["long header", "many headers", "TLS", "no HTTP", "no host", "two hosts", "two lengths", "negative length"],
)
def test_heads_that_are_none(server, request_bytes):
    with connect(server) as raw:
        try:
            raw.sendall(request_bytes)
        except (BrokenPipeError, ConnectionResetError):
            return
        data = received(raw)
    if data:  # where the rest of a huge head was on its way, the answer may be lost with the connection
        assert refusal(data)[0] == 400


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"null", 400),
        (b"[]", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b'{"messages": ' + b"[" * 99_000 + b"]" * 99_000 + b"}", 400),
        (b'{"max_tokens": ' + b"9" * 150_000 + b"}", 400),
        (b'{"messages": [], "temperature": 1e999}', 400),
        (b'{"messages": [], "temperature": NaN}', 400),
        (b'{"a": "\\ud800", "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bodies_that_are_none(client, body, status):
    response = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert client.get("/ready").status_code == 200


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_what_a_form_can_send_is_no_request(client, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    response = client.post(CHAT, content=json.dumps(chat("Hello")), headers=headers)
    assert response.status_code == 415
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", CHAT, 405),
        ("DELETE", CHAT, 405),
        ("POST", "/health", 405),
        ("GET", CHAT + "/", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/%00%0d%0aSet-Cookie:%20a", 404),
        ("GET", "/../../etc/passwd", 404),
        ("NONSENSE", "/health", 405),
        ("GET", "/" + "x" * 20_000, 404),
    ],
)
def test_other_addresses_and_methods(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert "set-cookie" not in response.headers


def test_bodies_of_all_clients_are_bounded():
    bodies = Bodies(ServerSettings(max_body=10, max_bodies=40))
    with bodies.reading("a"), bodies.reading("b"):
        bodies.take("a", 20)
        with pytest.raises(RequestError) as raised:
            bodies.take("a", 1)
        assert raised.value.status == 429
        bodies.take("b", 20)
        with pytest.raises(RequestError):
            bodies.take("c", 1)
        bodies.give_back("a", 20)
        bodies.take("c", 20)
