"""Fetching goes to addresses that were checked, and to no other; a redirect leads to no inside one."""

import base64
import socket
import threading

import pytest

from mlx_fastvlm.processing import addresses
from mlx_fastvlm.processing.fetch import fetch
from tests.support.web import BODY, refusal

# Where it may go


@pytest.mark.parametrize(
    ("address", "public"),
    {
        "93.184.216.34": True,
        "2606:2800:220:1::1": True,
        "::ffff:93.184.216.34": True,
        "64:ff9b::5db8:d822": True,
        "127.0.0.1": False,
        "10.0.0.1": False,
        "172.16.0.1": False,
        "192.168.1.1": False,
        "169.254.169.254": False,
        "100.64.0.1": False,
        "0.0.0.0": False,
        "255.255.255.255": False,
        "224.0.1.1": False,
        "::": False,
        "::1": False,
        "::127.0.0.1": False,
        "::ffff:127.0.0.1": False,
        "::ffff:169.254.169.254": False,
        "64:ff9b::7f00:1": False,
        "64:ff9b:1::1": False,
        "2002:7f00:1::": False,
        "2001:db8::1": False,
        "fe80::1%eth0": False,
        "fec0::1": False,
        "fd00::1": False,
        "ff02::1": False,
    }.items(),
)
def test_what_is_public(address, public):
    assert addresses.is_public(address) == public


def test_a_name_is_looked_up_once(start, names):
    """A name that leads elsewhere the second time does not get there, neither at the first hop nor by a redirect."""
    outside, inside = start(), start()
    names["a.example"] = [[("127.0.0.1", outside.server_port)], [("127.0.0.1", inside.server_port)]]
    assert fetch(outside.url("/image", host="a.example")) == BODY
    names["b.example"] = names["a.example"]
    outside.answers["/image"] = "http://b.example/secret"  # port 80 of the first address
    refusal(outside.url("/image", host="b.example"))
    assert len(outside.requests) == 2
    assert inside.connections == 0


def test_a_redirect_to_the_same_host_goes_to_the_same_address(start, names):
    server = start()
    names["a.example"] = [[("127.0.0.1", server.server_port)], []]
    server.answers["/image"] = "/moved"
    server.answers["/moved"] = server.url("/there", host="A.example")
    assert fetch(server.url(host="a.example")) == BODY
    assert [path for path, _ in server.requests] == ["/image", "/moved", "/there"]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "host", ["inside.example", "127.0.0.1", "127.1", "2130706433", "[::ffff:127.0.0.1]", "localhost"]
)
def test_a_redirect_inside_is_refused_before_a_connection(start, names, scheme, host):
    outside, inside = start(), start()
    names["outside.example"] = [[("127.0.0.1", outside.server_port)]]
    names["inside.example"] = [[("127.0.0.1", inside.server_port)]]
    outside.answers["/image"] = f"{scheme}://{host}:{inside.server_port}/secret"
    assert "an address inside this network" in refusal(outside.url(host="outside.example"))
    assert inside.connections == 0


def test_no_way_back_inside_once_a_redirect_has_led_elsewhere(start, names, monkeypatch):
    """The host that the user named may answer for itself, and nobody else may send us to it again."""
    typed, elsewhere = start(), start()
    names["typed.example"] = [[("127.0.0.1", typed.server_port)]]
    names["elsewhere.example"] = [[("127.0.0.2", elsewhere.server_port)]]
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.2")
    monkeypatch.setattr(addresses.socket, "socket", _to_this_machine)
    typed.answers["/image"] = elsewhere.url(host="elsewhere.example")
    elsewhere.answers["/image"] = typed.url("/delete", host="typed.example")
    assert "an address inside this network" in refusal(typed.url(host="typed.example"))
    assert len(elsewhere.requests) == 1
    assert [path for path, _ in typed.requests] == ["/image"]


class _to_this_machine(socket.socket):
    """127.0.0.2, which Macs don't have, is 127.0.0.1 with another name here."""

    def connect(self, address):
        super().connect(("127.0.0.1", address[1]))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f.1", "inside.example", "[::1]", "both.example"])
def test_private_addresses_that_strangers_type_are_refused_before_a_connection(start, names, host, monkeypatch):
    inside = start()
    names["inside.example"] = [[("127.0.0.1", inside.server_port)]]
    names["both.example"] = [[("127.0.0.1", inside.server_port), ("192.168.7.7", inside.server_port)]]
    assert "an address inside this network" in refusal(inside.url(host=host), private=False)
    assert inside.connections == 0


def test_public_addresses_that_strangers_type_are_fetched(start, names, monkeypatch):
    server = start()
    names["public.example"] = [[("10.0.0.1", 9), ("127.0.0.1", server.server_port)], [("10.0.0.1", 9)]]
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    assert fetch(server.url(host="public.example"), private=False) == BODY
    names["again.example"] = names["public.example"][:1]
    server.answers["/image"] = server.url("/there", host="again.example")
    assert fetch(server.url(host="again.example"), private=False) == BODY
    names["rebound.example"] = [names["public.example"][0], [("10.0.0.1", 9)]]
    server.answers["/image"] = "/there"
    assert "an address inside this network" in refusal(server.url(host="rebound.example"), private=False)


def test_the_server_is_told_the_name_that_was_asked_for(start, names):
    server = start()
    names["a.example"] = [[("127.0.0.1", server.server_port)]]
    fetch(server.url(host="a.example"))
    fetch("http://a.example/")
    hosts = [headers["Host"] for _, headers in server.requests]
    assert hosts == [f"a.example:{server.server_port}", "a.example"]


def test_tls_is_asked_for_by_name_too(names):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        names["a.example"] = [[listener.getsockname()]]
        hello = []

        def answer():
            accepted, _ = listener.accept()
            with accepted:
                hello.append(accepted.recv(2**14))

        threading.Thread(target=answer, daemon=True).start()
        refusal("https://a.example/")
    assert b"a.example" in hello[0]


# Proxies


def test_a_proxy_of_the_environment(start, monkeypatch):
    proxy = start()
    monkeypatch.setenv("http_proxy", proxy.url("", host="me:secret@127.0.0.1"))
    monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy.server_port}")
    monkeypatch.setenv("no_proxy", "direct.example")
    assert fetch("http://behind.example/bü?a") == BODY
    target, headers = proxy.requests[0]
    assert target == "http://behind.example/b%C3%BC?a"
    assert headers["Host"] == "behind.example"
    assert headers["Proxy-Authorization"] == "Basic " + base64.b64encode(b"me:secret").decode()
    assert "403" in refusal("https://behind.example/")
    target, headers = proxy.requests[1]
    assert target == "behind.example:443"
    assert "Proxy-Authorization" not in headers
    assert "could not be fetched" in refusal("http://direct.example:9/")
    assert len(proxy.requests) == 2


def test_a_proxy_is_sent_to_no_inside_address(start, monkeypatch):
    """Numeric ones: names are looked up behind the proxy. What the user types is the user's choice, as without one."""
    proxy = start()
    monkeypatch.setenv("http_proxy", proxy.url(""))
    monkeypatch.delenv("no_proxy")
    proxy.answers["http://behind.example/"] = "http://169.254.169.254/latest"
    proxy.answers["http://10.1.1.1/"] = "http://10.1.1.1/there"
    assert "an address inside this network" in refusal("http://behind.example/")
    assert "an address inside this network" in refusal("http://10.1.1.1/", private=False)
    assert fetch("http://10.1.1.1/") == BODY
    assert [target for target, _ in proxy.requests] == [
        "http://behind.example/",
        "http://10.1.1.1/",
        "http://10.1.1.1/there",
    ]


def test_proxies_that_are_none(start, monkeypatch):
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    assert "neither http nor https" in refusal("http://a.example/")
