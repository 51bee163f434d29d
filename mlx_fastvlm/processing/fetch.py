"""A URL -> its bytes, within limits, and never from an address inside this network that a server sends us to."""

from __future__ import annotations

import base64
import contextlib
import http.client
import queue
import re
import socket
import ssl
import string
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import one_line
from .addresses import Address, check_literal, connect, resolve

URL_TIMEOUT = 20  # seconds without an answer
URL_DEADLINE = 120  # seconds for all of it, the look-up of the name included
URL_LIMIT = 64 * 2**20  # bytes
MAX_REDIRECTS = 10


def fetch(url: str, kind: str = "image", *, private: bool = True) -> bytes:
    """A URL's body, http and https only, also after redirects.

    Each name is looked up once, and the connection goes to an address that was checked. A redirect leads to public
    addresses only, or to the very address that the URL itself led to. Behind a proxy of the environment
    (``http_proxy``, ``https_proxy``, ``no_proxy``) names are the proxy's matter: only numeric addresses are checked.

    Args:
        kind: what errors call what is wanted.
        private: whether the URL itself may lead into the private network, as one that the user typed may; False for
            URLs of strangers.

    Raises:
        OSError: it could not be fetched, or not within the limits of time, size and redirects.
        ValueError: what came is a web page or JSON.
    """
    transfer, shown = _Transfer(private), shown_url(url)
    try:
        body, content_type = _in_time(transfer, url)
    except _StatusError as error:
        raise OSError(f"{shown} answered {one_line(str(error))}; check the address.") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = one_line(str(error)) or type(error).__name__
        raise OSError(f"{shown} could not be fetched ({reason}); check the address and the connection.") from None
    if len(body) > URL_LIMIT:
        raise OSError(f"{shown} is larger than {URL_LIMIT >> 20} MB; download it and give its path.")
    if content_type in ("text/html", "application/json"):
        raise ValueError(f"{shown} is {content_type}, not the {kind} itself; give the {kind}'s own address.")
    return body


def shown_url(url: str) -> str:
    """A URL for an error's sentence: on one line, not too long, and without its password."""
    return one_line(re.sub(r"(?<=//)[^/?#]*@", "", url, count=1))


class _StatusError(Exception):
    """The server answered, and the answer is no file."""


def _in_time(transfer: _Transfer, url: str) -> tuple[bytes, str]:
    """What the transfer brings, or ``TimeoutError``.

    It runs in a thread of its own, since nothing else ends the look-up of a name, and a socket's own timeout is for one
    silence: a server that says a word now and then could keep us forever.
    """
    outcome: queue.SimpleQueue[tuple[bytes, str] | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put(transfer.run(url))
        except BaseException as error:
            outcome.put(error)

    threading.Thread(target=run, name="fetch", daemon=True).start()
    try:
        found = outcome.get(timeout=URL_DEADLINE)
    except queue.Empty:
        raise TimeoutError(f"it took more than {URL_DEADLINE} s") from None
    finally:
        transfer.stop()
    if isinstance(found, BaseException):
        raise found
    return found


class _Transfer:
    """One URL and its redirects."""

    def __init__(self, private: bool) -> None:
        self._private = private
        self._socket: socket.socket | None = None
        self._stopped = False
        self._own_host: str | None = None  # that the user named, as long as no redirect has led elsewhere
        self._own_address: Address | None = None  # that it led to

    def stop(self) -> None:
        """End it from another thread."""
        self._stopped = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def run(self, url: str) -> tuple[bytes, str]:
        """The body, which is cut off beyond the limit, and its content type."""
        for hops in range(MAX_REDIRECTS + 1):
            hop = _Hop.parse(url)
            proxy = _proxy(hop)
            with contextlib.closing(self._open(hop, proxy, hops == 0)) as connection:
                connection.request("GET", *_request(hop, proxy))
                response = connection.getresponse()
                if 200 <= response.status < 300:
                    return _read(response), response.headers.get_content_type()
                url = _redirect(url, response)
        raise _StatusError(f"{response.status}, a redirect after {MAX_REDIRECTS} others")

    def _open(self, hop: _Hop, proxy: _Hop | None, first: bool) -> http.client.HTTPConnection:
        if first and self._private:
            self._own_host = hop.host
        elif hop.host != self._own_host:
            self._own_host = self._own_address = None  # a server elsewhere must not send us back inside
        if proxy is not None:
            if self._own_host is None:
                check_literal(hop.host)
            return _through(proxy, hop)
        connection = _PinnedConnection(hop, self._addresses(hop, first), self._watch)
        connection.connect()
        if first and self._private:
            self._own_address = connection.address
        return connection

    def _addresses(self, hop: _Hop, first: bool) -> list[Address]:
        if self._own_address is not None:
            return [self._own_address.with_port(hop.port)]
        return resolve(hop.host, hop.port, public=not (first and self._private))

    def _watch(self, opened: socket.socket) -> None:
        self._socket = opened
        if self._stopped:
            raise TimeoutError("it was stopped")


@dataclass(frozen=True)
class _Hop:
    """A URL in parts, as they go over the wire."""

    tls: bool
    host: str
    port: int
    target: str  # path and query
    authorization: str | None

    @classmethod
    def parse(cls, url: str) -> _Hop:
        if any(ord(character) < 32 or ord(character) == 127 for character in url):
            raise ValueError("the address has control characters")  # which urlsplit would leave out in silence
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise ValueError(f"{parts.scheme}: is neither http nor https")
        if not parts.hostname:
            raise ValueError("the address has no host")
        tls = parts.scheme == "https"
        host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        return cls(tls, host, parts.port or (443 if tls else 80), _quoted(target), _authorization(parts))

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def _quoted(text: str, encoding: str = "utf-8") -> str:
    """Spaces and whatever is not ASCII percent-encoded; what is so already stays."""
    return urllib.parse.quote(text, safe=string.punctuation, encoding=encoding)


def _authorization(parts: urllib.parse.SplitResult) -> str | None:
    if parts.username is None:
        return None
    pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _request(hop: _Hop, proxy: _Hop | None) -> tuple[str, None, dict[str, str]]:
    """Target, body and headers of a request."""
    headers = {"User-Agent": "mlx-fastvlm", "Connection": "close"}
    if hop.authorization is not None:
        headers["Authorization"] = hop.authorization
    if proxy is None or hop.tls:
        return hop.target, None, headers
    if proxy.authorization is not None:
        headers["Proxy-Authorization"] = proxy.authorization
    return f"http://{hop.netloc}{hop.target}", None, headers


class _PinnedConnection(http.client.HTTPConnection):
    """Goes to addresses that were checked, whatever the host's name leads to meanwhile."""

    address: Address

    def __init__(self, hop: _Hop, addresses: list[Address], watch: Callable[[socket.socket], None]) -> None:
        super().__init__(hop.host, hop.port)
        self.default_port = 443 if hop.tls else 80  # which the header Host leaves out
        self._tls, self._addresses, self._watch = hop.tls, addresses, watch

    def connect(self) -> None:
        self.sock, self.address = connect(self._addresses, URL_TIMEOUT, self._watch)
        if self._tls:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self._watch(self.sock)
            self.sock.do_handshake()


def _proxy(hop: _Hop) -> _Hop | None:
    """The environment's proxy for a hop."""
    proxy = urllib.request.getproxies().get("https" if hop.tls else "http")
    if not proxy or urllib.request.proxy_bypass(hop.netloc):
        return None
    return _Hop.parse(proxy if "://" in proxy else f"http://{proxy}")


def _through(proxy: _Hop, hop: _Hop) -> http.client.HTTPConnection:
    """A connection to a proxy, or for https through it."""
    kind = http.client.HTTPSConnection if hop.tls or proxy.tls else http.client.HTTPConnection
    connection = kind(proxy.host, proxy.port, timeout=URL_TIMEOUT)
    if hop.tls:
        headers = {} if proxy.authorization is None else {"Proxy-Authorization": proxy.authorization}
        connection.set_tunnel(hop.host, hop.port, headers)
    return connection


def _redirect(url: str, response: http.client.HTTPResponse) -> str:
    """Where an answer that is no file sends us; ``_StatusError`` if nowhere that we go."""
    answer = f"{response.status} {response.reason}"
    location = response.headers.get("Location")
    if response.status not in (301, 302, 303, 307, 308) or not location:
        raise _StatusError(answer)
    url = urllib.parse.urljoin(url, _quoted(location, "latin-1"))  # the bytes that came, as http.client has them
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise _StatusError(f"{answer}, a redirect that is neither http nor https")
    return url


def _read(response: http.client.HTTPResponse) -> bytes:
    announced, body = response.length, bytearray()
    while len(body) <= URL_LIMIT and (piece := response.read1(2**16)):
        body += piece
    if announced is not None and len(body) < min(announced, URL_LIMIT):
        raise OSError(f"only {len(body)} of {announced} bytes came")
    return bytes(body)
