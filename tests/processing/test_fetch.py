"""Fetching ends in time, takes URLs as people write them, and says what went wrong in one line."""

import base64
import socket
import threading

import pytest

from mlx_fastvlm import load_image
from mlx_fastvlm.processing import addresses
from mlx_fastvlm.processing import fetch as fetching
from mlx_fastvlm.processing.fetch import fetch
from tests.support.web import BODY, refusal


def test_urls_that_fail(server):
    with pytest.raises(OSError, match="404"):
        load_image(f"{server}/missing")
    with pytest.raises(OSError, match="302"):
        load_image(f"{server}/moved")
    with pytest.raises(OSError, match="could not be fetched"):
        load_image("http://127.0.0.1:9/nothing-listens-here")


def test_urls_that_are_too_large_or_too_slow(server, monkeypatch):
    monkeypatch.setattr("mlx_fastvlm.processing.fetch.URL_DEADLINE", 0.2)
    with pytest.raises(OSError, match=r"took more than 0\.2 s"):
        load_image(f"{server}/endless")
    monkeypatch.setattr("mlx_fastvlm.processing.fetch.URL_DEADLINE", 60)
    monkeypatch.setattr("mlx_fastvlm.processing.fetch.URL_LIMIT", 20)
    with pytest.raises(OSError, match="is larger than"):
        load_image(f"{server}/image")


# In time


def test_a_name_that_is_never_found(monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(60) and [])
    monkeypatch.setattr(fetching, "URL_DEADLINE", 0.1)
    try:
        assert "took more than 0.1 s" in refusal("http://a.example/")
    finally:
        over.set()


def test_many_addresses_that_are_silent(names, monkeypatch):
    tried, over = [], threading.Event()

    class Silent(socket.socket):
        def connect(self, address):
            tried.append(address)
            over.wait(60)
            raise TimeoutError

    names["a.example"] = [[(f"10.0.0.{i}", 80) for i in range(1, 100)]]
    monkeypatch.setattr(addresses.socket, "socket", Silent)
    monkeypatch.setattr(fetching, "URL_DEADLINE", 0.1)
    assert "took more than 0.1 s" in refusal("http://a.example/")
    over.set()
    for thread in threading.enumerate():
        if thread.name == "fetch":
            thread.join(60)
    assert len(tried) == 1  # what is left behind ends, and tries no more of them


def test_tls_that_is_never_greeted(names, monkeypatch):
    monkeypatch.setattr(fetching, "URL_DEADLINE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # the system takes the connection, and nobody speaks
        names["a.example"] = [[listener.getsockname()]]
        assert "took more than 0.2 s" in refusal("https://a.example/")


def test_no_thread_stays(start):
    server = start()
    for _ in range(5):
        fetch(server.url())
    for thread in threading.enumerate():
        if thread.name == "fetch":
            thread.join(60)
            assert not thread.is_alive()


# How addresses are written


def test_users_and_passwords(start, names):
    """They reach the server that they are for, no other, and no error message."""
    server, other = start(), start()
    names["other.example"] = [[("127.0.0.1", other.server_port)]]
    url = server.url(host="me:p%40ss@127.0.0.1")
    assert fetch(url) == BODY
    assert server.requests[-1][1]["Authorization"] == "Basic " + base64.b64encode(b"me:p@ss").decode()
    server.answers["/image"] = "/there"
    assert fetch(url) == BODY
    assert "Authorization" in server.requests[-1][1]
    server.answers["/image"] = b"HTTP/1.1 403 Forbidden\r\n\r\n"
    message = refusal(url)
    assert "answered 403 Forbidden" in message
    assert "p%40ss" not in message
    assert "me" not in message.partition(" ")[0]


def test_passwords_do_not_follow_a_redirect_elsewhere(start, names, monkeypatch):
    server, other = start(), start()
    names["other.example"] = [[("127.0.0.1", other.server_port)]]
    monkeypatch.setattr(addresses, "is_public", lambda _: True)
    server.answers["/image"] = other.url(host="other.example")
    assert fetch(server.url(host="me:secret@127.0.0.1")) == BODY
    assert "Authorization" in server.requests[0][1]
    assert "Authorization" not in other.requests[0][1]


@pytest.mark.parametrize(
    ("typed", "sent"),
    {
        "/büch er.png": "/b%C3%BCch%20er.png",
        "/b%C3%BCch%20er.png": "/b%C3%BCch%20er.png",
        "/a?q=é&b=[1]#part": "/a?q=%C3%A9&b=[1]",
        "?only=query": "/?only=query",
        "": "/",
    }.items(),
)
def test_paths(start, typed, sent):
    server = start()
    assert fetch(server.url(typed)) == BODY
    assert server.requests[0][0] == sent


def test_redirects_with_raw_bytes(start):
    server = start()
    server.answers["/image"] = "/büch er.png"
    assert fetch(server.url()) == BODY
    assert server.requests[1][0] == "/b%C3%BCch%20er.png"


def test_names_beyond_ascii(start, names):
    server = start()
    names["xn--bcher-kva.example"] = [[("127.0.0.1", server.server_port)]]
    assert fetch(server.url(host="Bücher.example")) == BODY
    assert server.requests[0][1]["Host"].startswith("xn--bcher-kva.example")


def test_schemes_in_capitals(start):
    server = start()
    assert fetch(server.url().replace("http", "HTTP")) == BODY
    with pytest.raises(ValueError, match="not an image"):
        load_image(server.url().replace("http", "HtTp"))
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/a\r\nX-Injected: y",
        "http://127.0.0.1:{port}/a\nb",
        "http://127.0.0.1:{port}/a\tb",
        "http://127.0.0.1\r\nX: y:{port}/",
        "http://a\r\nX: y@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}/\x7f",
        "http://",
        "http:///image",
        "http://[::bad/",
        "http://a:port/",
        "http://" + "a" * 300 + ".example/",
        "http://a..example/",
    ],
)
def test_addresses_that_are_none(start, url):
    server = start()
    assert "could not be fetched" in refusal(url.format(port=server.server_port))
    assert server.connections == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 \x1b[31mNot\x9b Found\r\n\r\n",
        b"\x1b]0;title\x07\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: file:///\x1b\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: gopher://x/\r\n\r\n",
        b"HTTP/1.1 302 Found\r\n\r\n",
        b"HTTP/1.1 302 " + b"F" * 60000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nfew",
        b"",
    ],
)
def test_answers_that_are_none(start, answer):
    server = start()
    server.answers["/image"] = answer
    assert len(refusal(server.url())) < 700


def test_redirects_end(start):
    server = start()
    for i in range(20):
        server.answers[f"/{i}"] = f"/{i + 1}"
    assert fetch(server.url("/10")) == BODY  # ten of them
    assert "answered 302" in refusal(server.url("/9"))


def test_bytes_end(start, monkeypatch):
    server = start()
    monkeypatch.setattr(fetching, "URL_LIMIT", len(BODY))
    assert fetch(server.url()) == BODY
    monkeypatch.setattr(fetching, "URL_LIMIT", len(BODY) - 1)
    with pytest.raises(OSError, match="is larger than"):
        fetch(server.url())
