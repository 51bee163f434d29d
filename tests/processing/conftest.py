"""A small image, and a server that has it."""

import http.server
import threading
import time

import pytest
from PIL import Image

from tests.support import small
from tests.support.images import encoded


@pytest.fixture
def picture():
    return Image.fromarray(small.odd_picture(40, 30))


@pytest.fixture
def server(picture):
    """A loopback server: /picture is one, /missing is not, /moved redirects to a file."""

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
            elif self.path == "/picture":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(encoded(picture))
            else:
                self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
