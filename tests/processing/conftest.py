"""A small image, a server that has it, and a small web whose names lead where a test says."""

import http.server
import socket
import threading
import time
from collections import Counter

import pytest
from PIL import Image

from tests.support import small
from tests.support.images import encoded
from tests.support.web import Server

REAL_LOOKUP = socket.getaddrinfo


@pytest.fixture
def image():
    return Image.fromarray(small.odd_image(40, 30))


@pytest.fixture
def server(image):
    """A loopback server: /image is one, /missing is not, /moved redirects to a file."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "file:///etc/passwd")
                self.end_headers()
            elif self.path == "/endless":
                self.send_response(200)
                self.end_headers()
                while not self.wfile.closed:
                    self.wfile.write(b"\0")
                    time.sleep(0.02)
            elif self.path == "/image":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(encoded(image))
            else:
                self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def start(monkeypatch):
    servers = []
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")

    def start():
        servers.append(Server())
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def names(monkeypatch):
    """``names["a.example"] = [one, next]``: each look-up's (address, port) pairs; the last one is for ever."""
    table, asked = {}, Counter()

    def look_up(host, port, *arguments, **options):
        if host not in table or options.get("flags", 0) & socket.AI_NUMERICHOST:
            return REAL_LOOKUP(host, port, *arguments, **options)
        answers = table[host]
        answer = answers[min(asked[host], len(answers) - 1)]
        asked[host] += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", pair) for pair in answer]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return table
