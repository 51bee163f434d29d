"""Servers that answer badly, and addresses that are none."""

import http.server
import threading
import time
from contextlib import contextmanager

from tests.support.images import encoded

from .cases import PICTURE, Case


def url(words, path):
    return Case(words, lambda place: ["--image", place.url + path])


CASES = {
    "network: refused": Case("could not be fetched", lambda p: ["--image", "http://127.0.0.1:9/picture.png"]),
    "network: 404": url("answered 404", "/missing"),
    "network: silence": url("timed out", "/silent"),
    "network: a header a second": url("took more than", "/slow-header"),
    "network: a body without an end": url("took more than", "/endless"),
    "network: a large body": url("is larger than", "/large"),
    "network: cut off": url("broken", "/cut"),
    "network: a redirect to a file": url("answered 302", "/to-a-file"),
    "network: a redirect to a private address": url("an address inside this network", "/to-this-machine"),
    "network: redirects without an end": url("answered 302", "/round"),
    "network: a web page": url("is no picture but text/html", "/page"),
    "network: junk that says it is a picture": url("not a picture", "/junk"),
    "network: not HTTP": url("could not be fetched", "/not-http"),
    "network: an impossible address": Case("could not be fetched", lambda p: ["--image", "http://[::bad/x.png"]),
    "network: a name with a line break": Case("could not be fetched", lambda p: ["--image", "http://a\nb/x.png"]),
}


@contextmanager
def serve():
    """A server that answers badly in many ways: its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, body, kind="image/png"):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        def redirect(self, target):
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()

        def do_GET(self):
            port = self.server.server_port
            if self.path == "/silent":
                time.sleep(1.5)
            elif self.path == "/slow-header":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                for _ in range(40):
                    self.wfile.write(b"X-More: y\r\n")
                    time.sleep(0.05)
            elif self.path == "/endless":
                self.send_response(200)
                self.end_headers()
                for _ in range(100):
                    self.wfile.write(b"\0")
                    time.sleep(0.02)
            elif self.path == "/large":
                self.answer(bytes(3000))
            elif self.path == "/cut":
                self.answer(encoded(PICTURE)[:700])
            elif self.path == "/to-a-file":
                self.redirect("file:///etc/passwd")
            elif self.path == "/to-this-machine":  # we are called localhost here
                self.redirect(f"http://127.0.0.1:{port}/picture")
            elif self.path == "/round":
                self.redirect("/round")
            elif self.path == "/page":
                self.answer(b"<html>", "text/html; charset=utf-8")
            elif self.path == "/junk":
                self.answer(b"junk" * 9)
            elif self.path == "/not-http":
                self.wfile.write(b"SSH-2.0-OpenSSH\r\n")
            elif self.path == "/picture":
                self.answer(encoded(PICTURE))
            else:
                self.send_error(404)

        def handle(self):
            try:
                super().handle()
            except OSError:  # they hung up on us
                pass

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()
