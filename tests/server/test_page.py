"""The page as it is served, and its modules as far as they need no browser."""

import re

import pytest

from mlx_fastvlm.server.static import POLICY, TYPES
from tests.support.node import needs_node, node
from tests.support.paths import ROOT
from tests.support.server import running

PAGE = ROOT / "mlx_fastvlm" / "server" / "page"
TESTS = ROOT / "tests" / "server" / "page"
KEY = "sesame-open-up"


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


@pytest.mark.parametrize("name", sorted(path.name for path in PAGE.iterdir()))
def test_every_file_is_served(server, name):
    with server.client() as client:
        response = client.get("/" if name == "index.html" else f"/page/{name}")
    assert response.status_code == 200
    assert response.content == (PAGE / name).read_bytes()
    assert response.headers["content-type"] == TYPES[(PAGE / name).suffix]
    assert response.headers["content-security-policy"] == POLICY
    assert response.headers["x-content-type-options"] == "nosniff"


def test_the_policy_allows_only_the_server():
    words = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert words["default-src"] == "'self'"
    assert words["img-src"] == "'self' data: blob:"
    assert words["media-src"] == "'self' blob:"
    assert {words[name] for name in ("object-src", "base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert not re.search(r"unsafe|https?:|\*|script-src|style-src|connect-src", POLICY)


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page",
        "/index.html",
        "/page/index.html",
        "/page/nothing.js",
        "/page/../app.py",
        "/page/%2e%2e/app.py",
    ],
)
def test_nothing_else_is_served(server, path):
    with server.client() as client:
        assert client.get(path).status_code == 404


def test_it_needs_no_key_and_holds_none():
    with running(api_keys=(KEY,)) as server, server.client() as client:
        assert client.get("/").status_code == 200
        assert client.get("/page/app.js").status_code == 200
        assert client.get("/v1/models").status_code == 401


@needs_node
@pytest.mark.parametrize("name", sorted(path.name for path in TESTS.glob("*.test.mjs")))
def test_modules(name):
    told = node("--test", "--test-reporter=tap", str(TESTS / name))
    assert re.search(r"^# fail 0$", told, re.M)
    assert re.search(r"^# skipped 0$", told, re.M)
