"""A web server that answers as a test says, and the errors of fetching from it."""

import http.server
import threading

import pytest

from mlx_fastvlm.processing.fetch import fetch

BODY = b"certainly bytes"


class Server(http.server.ThreadingHTTPServer):
    """Answers with BODY, or as ``answers`` says: a path -> the raw answer, or a Location to go to."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.answers, self.connections = [], {}, 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def url(self, path="/image", host="127.0.0.1"):
        return f"http://{host}:{self.server_port}{path}"

    def process_request(self, request, address):
        self.connections += 1
        super().process_request(request, address)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        answer = self.server.answers.get(self.path, BODY)
        if isinstance(answer, str):
            self.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: " + answer.encode() + b"\r\n\r\n")
        elif answer is BODY:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
        else:
            self.wfile.write(answer)

    def do_CONNECT(self):
        self.server.requests.append((self.path, dict(self.headers)))
        self.send_error(403)

    def log_message(self, *_):
        pass


def refusal(url, **options):
    with pytest.raises(OSError, match=r"could not be fetched|answered") as raised:
        fetch(url, **options)
    assert str(raised.value).isprintable(), raised.value
    return str(raised.value)
