"""A URL -> its bytes, with limits, and never from an address inside this network that a server sends us to."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request

URL_TIMEOUT = 20  # seconds without an answer
URL_DEADLINE = 120  # seconds for all of it
URL_LIMIT = 64 * 2**20  # bytes


class _Connections:
    """Opens a URL's connections, and closes them when all of it takes too long.

    A socket's own timeout is for one silence, so a server that says a word now and then could keep us forever.
    """

    def __init__(self):
        self.opened: list[socket.socket] = []
        self.timer = threading.Timer(URL_DEADLINE, self._give_up)
        self.timer.daemon = True
        self.late = False

    def _give_up(self):
        self.late = True
        for opened in self.opened:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)

    def handlers(self) -> list[urllib.request.BaseHandler]:
        def connection(kind: type, request: urllib.request.Request):
            def make(host, **options):
                made = kind(host, **options)
                connect = made.connect

                def guarded():
                    connect()
                    self.opened.append(made.sock)
                    _check_redirect(request, made.sock)

                made.connect = guarded
                return made

            return make

        class Http(urllib.request.HTTPHandler):
            def http_open(self, request):
                return self.do_open(connection(http.client.HTTPConnection, request), request)

        class Https(urllib.request.HTTPSHandler):
            def https_open(self, request):
                return self.do_open(connection(http.client.HTTPSConnection, request), request)

        return [Http(), Https()]


def _check_redirect(request: urllib.request.Request, connected: socket.socket):
    """``OSError`` where a URL's server sent us to an address inside this network, which the user did not name.

    The address that the connection really has is checked, so no trick with names helps. A proxy's is its own matter.
    """
    # urllib keeps the first URL's host as origin_req_host, in lower case and without a port.
    host = urllib.parse.urlsplit(request.full_url).hostname
    if not hasattr(request, "redirect_dict") or request.has_proxy() or host == request.origin_req_host:
        return
    address = ipaddress.ip_address(connected.getpeername()[0].partition("%")[0])
    if not address.is_global:
        raise OSError(f"it redirects to {request.host}, an address inside this network")


def fetch(url: str) -> bytes:
    """A URL's body, http and https only, also after redirects, which may not lead to private addresses."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "mlx-fastvlm"})
        connections = _Connections()
        # Only these handlers: the default opener would also follow a redirect to ftp.
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            *connections.handlers(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler(),
        ):
            opener.add_handler(handler)
        connections.timer.start()
        try:
            with opener.open(request, timeout=URL_TIMEOUT) as response:
                kind = response.headers.get_content_type()
                body = bytearray()
                while len(body) <= URL_LIMIT and (piece := response.read1(2**16)):
                    body += piece
        finally:
            connections.timer.cancel()
            if connections.late:
                raise TimeoutError(f"it took more than {URL_DEADLINE} s")
    except urllib.error.HTTPError as error:
        raise OSError(f"{url} answered {error.code} {error.reason}; check the address.") from None
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        reason = getattr(error, "reason", error)
        raise OSError(f"{url} could not be fetched ({reason}); check the address and the connection.") from None
    if len(body) > URL_LIMIT:
        raise OSError(f"{url} is larger than {URL_LIMIT >> 20} MB; download it and give its path.")
    if kind in ("text/html", "application/json"):
        raise ValueError(f"{url} is no picture but {kind}; give the address of the picture itself.")
    return bytes(body)
