"""Internet addresses: which are public, which a host may be reached at, and sockets to exactly those."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

_IPV6_PUBLIC = ipaddress.IPv6Network("2000::/3")
_IPV6_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # its last 32 bits are an IPv4 address, reached through a gateway


class Address(NamedTuple):
    """Where a socket connects to: the family and the address as the ``socket`` module has them."""

    family: socket.AddressFamily
    sockaddr: tuple[Any, ...]

    def with_port(self, port: int) -> Address:
        return Address(self.family, (self.sockaddr[0], port, *self.sockaddr[2:]))


def is_public(address: str) -> bool:
    """Whether a numeric address is one that anybody on the internet could reach.

    Not public: private, loopback and link-local networks, multicast, what is reserved, and IPv6 addresses that stand
    for such IPv4 ones.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast
    if ip.ipv4_mapped is not None:
        return is_public(str(ip.ipv4_mapped))
    if ip in _IPV6_NAT64:
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip in _IPV6_PUBLIC and ip.is_global and ip.sixtofour is None


def resolve(host: str, port: int, *, public: bool) -> list[Address]:
    """The addresses of a host, looked up once; with ``public`` only its public ones.

    Raises:
        OSError: the host is unknown, or ``public`` and all of its addresses lie inside this network.
    """
    found = [Address(entry[0], entry[4]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    allowed = [address for address in found if is_public(address.sockaddr[0])] if public else found
    if not allowed:
        raise OSError(f"it leads to {host}, an address inside this network")
    return allowed


def check_literal(host: str) -> None:
    """``OSError`` where a host is written as an address that is not public, in any of the system's notations.

    For hosts that a proxy will look up: nothing is looked up here.
    """
    with contextlib.suppress(socket.gaierror):  # a name
        for entry in socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST):
            if not is_public(str(entry[4][0])):
                raise OSError(f"it leads to {host}, an address inside this network")


def connect(
    addresses: list[Address], timeout: float, watch: Callable[[socket.socket], None]
) -> tuple[socket.socket, Address]:
    """A TCP connection to the first of the addresses that takes one.

    Args:
        timeout: seconds that each address has, and later each silence.
        watch: is handed every socket before it connects, so that it can be shut from another thread.

    Raises:
        OSError: none of them takes one; the last one's error.
    """
    error = OSError("it has no address")
    for address in addresses:
        tcp = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            tcp.settimeout(timeout)
            watch(tcp)
            tcp.connect(address.sockaddr)
            return tcp, address
        except OSError as refused:
            tcp.close()
            error = refused
    raise error
