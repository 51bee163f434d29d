"""Where a request may have images from: data: URIs always; URLs and files only where the server was told so."""

import base64
import os
import socket

import pytest

from mlx_fastvlm.processing import addresses
from mlx_fastvlm.server.dialect import chat, decisions, images, responses
from mlx_fastvlm.server.dialect.errors import RequestError
from tests.server.dialect.bodies import SERVED, data_uri, image_part, png, refusal, says, served


def film_part(url):
    return {"type": "video_url", "video_url": {"url": url}}


# The same address in every place that a body has for one.
PLACES = {
    "image_url": lambda url: (chat, says([image_part(url)])),
    "video_url": lambda url: (chat, says([film_part(url)])),
    "input_image": lambda url: (
        responses,
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]},
    ),
    "images": lambda url: (decisions, {"question": "Red?", "choices": ["Yes", "No"], "images": [url]}),
}


def read(place, url, to):
    dialect, body = PLACES[place](url)
    return dialect.read(body, to)


def opened(url, to=SERVED, place="image_url"):
    """The bytes that an address leads to."""
    ask = images.opened(read(place, url, to), to)
    if place == "video_url":
        return ask.options["video"]
    return ask.prompt[0]["content"][0]["image"]


def refused(url, to=SERVED, place="image_url"):
    with pytest.raises(RequestError) as raised:
        opened(url, to, place)
    assert raised.value.status == 400
    assert raised.value.param
    assert raised.value.message.isprintable()
    return raised.value


@pytest.mark.parametrize("place", PLACES)
def test_data_uris(place):
    assert opened(data_uri(), place=place) == png()
    assert opened(data_uri().replace("data:", "DATA:"), place=place) == png()
    assert opened("data:,%89PNG", place=place) == b"\x89PNG"


OTHERS = [
    "http://a.example/a.png",
    "https://a.example/a.png",
    "HTTP://127.0.0.1/a.png",
    "/etc/passwd",
    "etc/passwd",
    "../a.png",
    "file:///etc/passwd",
    "FILE:/etc/passwd",
    "-",
    "",
    "~/a.png",
    "ftp://a.example/a.png",
    "gopher://a",
    "javascript:1",
    base64.b64encode(png()).decode(),  # without data: in front
    base64.b64encode(bytes(10_000)).decode(),
    "C:\\a.png",
    "\\\\server\\share\\a.png",
]


@pytest.mark.parametrize("url", OTHERS)
@pytest.mark.parametrize("place", PLACES)
def test_nothing_else_unless_it_was_allowed(place, url):
    error = refusal(*(lambda dialect, body: (dialect.read, body))(*PLACES[place](url)))
    assert error.param
    if url.lower().startswith("http"):
        assert "--allow-urls" in error.message
    elif len(url) < 1000:
        assert "--image-root" in error.message


@pytest.mark.parametrize(
    "url", ["data:", "data:image/png;base64", "data:" + "a" * 2000 + ",", "data:;base64,!", "data:,"]
)
def test_broken_data_uris(url):
    refused(url)


def test_bytes_are_counted_before_they_are_decoded(monkeypatch):
    few = served(max_body=1000)
    monkeypatch.setattr(images, "open_source", None)
    error = refusal(chat.read, says([image_part("data:image/png;base64," + "A" * 2000)]), few)
    assert "too many bytes" in error.message
    parts = [image_part("data:image/png;base64," + "A" * 800)] * 2
    assert "too many bytes" in refusal(chat.read, says(parts), few).message


def test_bytes_of_all_images_count(tmp_path):
    (tmp_path / "a.png").write_bytes(bytes(600))
    few = served(max_body=1000, image_root=tmp_path)
    assert opened("a.png", few) == bytes(600)
    ask = chat.read(says([image_part("a.png"), image_part("a.png")]), few)
    with pytest.raises(RequestError, match="too many bytes") as raised:
        images.opened(ask, few)
    assert raised.value.param == "messages[0].content[1].image_url.url"


# Files


@pytest.fixture
def folder(tmp_path):
    """A server's folder of images, beside a file that is none of its business."""
    root = tmp_path / "images"
    (root / "inner").mkdir(parents=True)
    (root / "a b.png").write_bytes(b"a")
    (root / "inner" / "ü.png").write_bytes(b"u")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "images-too").mkdir()
    (tmp_path / "images-too" / "secret").write_bytes(b"secret")
    (root / "link").symlink_to(root / "inner" / "ü.png")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "folder").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    return root


@pytest.mark.parametrize("place", PLACES)
def test_files_of_the_folder(folder, place):
    to = served(image_root=folder)
    for path in ("a b.png", f"{folder}/a b.png", f"file://{folder}/a%20b.png", f"file://localhost{folder}/a b.png"):
        assert opened(path, to, place) == b"a"
    for path in ("inner/ü.png", f"file:{folder}/inner/%C3%BC.png", "link", "./inner//ü.png"):
        assert opened(path, to, place) == b"u"


OUTSIDE = [
    "../secret",
    "inner/../../secret",
    "inner/../a b.png",
    "..\\secret",
    "{root}/../secret",
    "file://{root}/%2e%2e/secret",
    "file://{root}/..%2fsecret",
    "{root}-too/secret",
    "/etc/passwd",
    "/",
    "file:///etc/passwd",
    "file:/etc/passwd",
    "out",
    "folder/secret",
    "{root}/folder/secret",
]
NOTHING = ["missing.png", "inner", ".", "loop", "pipe", "x" * 5000, "~", "~root/.bashrc", "-"]
NO_PATH = ["", "a\0b", "file:", "file:///", "file://host/share/a.png", "file://..", "smb://host/a.png", "file:///a?b"]


@pytest.mark.parametrize("path", [*OUTSIDE, *NOTHING, *NO_PATH], ids=lambda path: repr(path)[:40])
def test_files_that_are_not_the_folders(folder, path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder))
    error = refused(path.format(root=folder), served(image_root=folder))
    assert "secret" not in error.message
    assert str(folder) not in error.message
    assert ("leads out of the folder" in error.message) == (path in OUTSIDE or path == "file:///")


def test_what_is_there_outside_is_not_told(folder):
    to = served(image_root=folder)
    assert refused("/etc/passwd", to).message == refused("/etc/there-is-no-such-file", to).message
    assert refused("missing.png", to).message == refused("inner/missing.png", to).message


def test_a_folder_that_is_a_link(folder, tmp_path):
    link = tmp_path / "link to images"
    link.symlink_to(folder)
    assert opened("a b.png", served(image_root=link)) == b"a"
    assert opened(f"{link}/a b.png", served(image_root=link)) == b"a"


def test_a_link_that_is_put_there_late(folder, monkeypatch):
    """Between the check and the opening."""
    realpath = os.path.realpath

    def slow(path):
        found = realpath(path)
        if found.endswith("a b.png"):
            os.unlink(found)
            os.symlink(folder.parent / "secret", found)
        return found

    monkeypatch.setattr(images.os.path, "realpath", slow)
    assert "no image file" in refused("a b.png", served(image_root=folder)).message


def test_files_are_opened_late(folder):
    """Reading a body touches no disk; a slow one would keep all clients waiting."""
    assert read("image_url", "missing.png", served(image_root=folder))


# URLs


URLS = served(allow_urls=True)


@pytest.fixture
def world(monkeypatch):
    """Names that lead to addresses; no connection is made."""
    names, connected = {}, []

    def getaddrinfo(host, port, *_, **__):
        found = names.get(host, [host])
        kinds = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(kinds[":" in one], socket.SOCK_STREAM, 6, "", (one, port)) for one in found]

    class NoSocket(socket.socket):
        def connect(self, address):
            connected.append(address[0])
            raise ConnectionRefusedError("refused")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(addresses.socket, "socket", NoSocket)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return names, connected


INSIDE = [
    "127.0.0.1",
    "10.0.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "172.16.0.1",
    "100.64.0.1",
    "0.0.0.0",
    "[::1]",
    "[fd00::1]",
    "[fe80::1]",
    "[::ffff:127.0.0.1]",
    "2130706433",
    "0x7f.1",
    "localhost",
]


@pytest.mark.parametrize("host", INSIDE)
def test_urls_lead_to_public_addresses_only(world, host):
    names, connected = world
    names["localhost"] = ["127.0.0.1"]
    refused(f"http://{host}/a.png", URLS)
    refused(f"http://{host}:8080/latest/meta-data", URLS)
    assert connected == []


def test_names_of_private_addresses(world):
    names, connected = world
    names["a.example"] = ["10.0.0.1"]
    refused("http://a.example/a.png", URLS)
    assert connected == []


def test_public_addresses_are_asked(world):
    names, connected = world
    names["a.example"] = ["93.184.216.34"]
    assert "could not be fetched" in refused("http://a.example/a.png", URLS).message
    assert set(connected) == {"93.184.216.34"}


@pytest.mark.parametrize("place", PLACES)
def test_urls_are_fetched_late_and_once(monkeypatch, place):
    asked = []
    monkeypatch.setattr(images, "fetch", lambda url, kind, private: asked.append((url, kind, private)) or b"bytes")
    ask = read(place, "https://a.example/a", URLS)
    assert asked == []
    assert images.opened(ask, URLS)
    assert asked == [("https://a.example/a", "video" if place == "video_url" else "image", False)]


def test_what_is_fetched_counts_too(monkeypatch):
    monkeypatch.setattr(images, "fetch", lambda *_, **__: bytes(600))
    few = served(allow_urls=True, max_body=1000)
    ask = chat.read(says([image_part("http://a.example/")] * 3), few)
    with pytest.raises(RequestError, match="too many bytes"):
        images.opened(ask, few)


def test_errors_of_fetching_have_no_password(world):
    names, _ = world
    names["a.example"] = ["93.184.216.34"]
    assert "sesame" not in refused("http://user:sesame@a.example/a.png", URLS).message
