"""Servers that answer badly, and addresses that are none."""

import http.server
import threading
import time
from contextlib import contextmanager

from tests.support.images import encoded

from .cases import IMAGE, Case


def url(words, path):
    return Case(words, lambda place: ["--image", place.url + path])


CASES = {
    "network: refused": Case("could not be fetched", lambda p: ["--image", "http://127.0.0.1:9/image.png"]),
    "network: 404": url("answered 404", "/missing"),
    "network: silence": url("timed out", "/silent"),
    "network: a header a second": url("took more than", "/slow-header"),
    "network: a body without an end": url("took more than", "/endless"),
    "network: a large body": url("is larger than", "/large"),
    "network: cut off": url("broken", "/cut"),
    "network: a redirect to a file": url("answered 302", "/to-a-file"),
    "network: a redirect to a private address": url("an address inside this network", "/to-this-machine"),
    "network: redirects without an end": url("answered 302", "/round"),
    "network: a web page": url("is text/html, not the image", "/page"),
    "network: junk that says it is an image": url("not an image", "/junk"),
    "network: not HTTP": url("could not be fetched", "/not-http"),
    "network: an impossible address": Case("could not be fetched", lambda p: ["--image", "http://[::bad/x.png"]),
    "network: a name with a line break": Case("could not be fetched", lambda p: ["--image", "http://a\nb/x.png"]),
}


class BadServer(http.server.BaseHTTPRequestHandler):
    """Answers badly in many ways: a method a path."""

    def do_GET(self):
        way = getattr(self, self.path[1:].replace("-", "_"), None)
        way() if way else self.send_error(404)

    def answer(self, body, kind="image/png"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    def redirect(self, target):
        self.send_response(302)
        self.send_header("Location", target)
        self.end_headers()

    def silent(self):
        time.sleep(1.5)

    def slow_header(self):
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for _ in range(40):
            self.wfile.write(b"X-More: y\r\n")
            time.sleep(0.05)

    def endless(self):
        self.send_response(200)
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b"\0")
            time.sleep(0.02)

    def large(self):
        self.answer(bytes(3000))

    def cut(self):
        self.answer(encoded(IMAGE)[:700])

    def to_a_file(self):
        self.redirect("file:///etc/passwd")

    def to_this_machine(self):  # we are called localhost here
        self.redirect(f"http://127.0.0.1:{self.server.server_port}/image")

    def round(self):
        self.redirect("/round")

    def page(self):
        self.answer(b"<html>", "text/html; charset=utf-8")

    def junk(self):
        self.answer(b"junk" * 9)

    def not_http(self):
        self.wfile.write(b"SSH-2.0-OpenSSH\r\n")

    def image(self):
        self.answer(encoded(IMAGE))

    def handle(self):
        try:
            super().handle()
        except OSError:  # they hung up on us
            pass

    def log_message(self, *_):
        pass


@contextmanager
def serve():
    """The address of a server that answers badly."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), BadServer) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()
