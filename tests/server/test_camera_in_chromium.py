"""The page's live camera in a real browser, whose camera plays a film of the demo's world."""

import contextlib

import pytest

from tests.support.chromium import chromium, launched, needs_chromium, visiting, write_film
from tests.support.scripts import load_script
from tests.support.server import running

pytestmark = needs_chromium

SEEDS = 10_000_018, 10_000_010  # held out; one shape each, on squares
SIDE = 384  # pixels


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def scenes():
    script = load_script("examples/demo/scenes.py")
    found = [script.make_scene(seed, most_things=1) for seed in SEEDS]
    assert all(scene.width == scene.height == 1 for scene in found)
    return [(script.draw(scene, SIDE), f"A {scene.things[0].name}.") for scene in found]


@pytest.fixture(scope="module")
def browser(scenes, tmp_path_factory):
    film = write_film(tmp_path_factory.mktemp("film") / "scenes.y4m", [image for image, _ in scenes])
    with chromium(film) as browser:
        yield browser


@contextlib.contextmanager
def filming(browser, url, **options):
    with visiting(browser, url, permissions=["camera"], **options) as visit:
        visit.page.wait_for_selector("#model:not([hidden])")
        visit.page.click("#show-camera")
        visit.page.click("#camera-start")
        yield visit


def caption(visit, text):
    visit.page.wait_for_function("(text) => document.querySelector('#caption').textContent === text", arg=text)


def test_captions_change_with_the_film(browser, server, scenes):
    with filming(browser, server.url) as visit:
        (_, first), (_, second) = scenes
        assert first != second
        for text in (first, second, first):
            caption(visit, text)
        for figure in ("#camera-rate", "#camera-first"):
            assert visit.page.text_content(figure)[0].isdigit()
        assert visit.page.text_content("#camera-state") == "Live"
        assert visit.page.text_content("#said") in (first, second)
        assert visit.bodies[0]["max_completion_tokens"] == 100
        assert all(len(body["messages"]) == 1 for body in visit.bodies)


def test_pause_size_and_stop(browser, server):
    with filming(browser, server.url) as visit:
        visit.page.wait_for_selector("#caption:not(:empty)")
        visit.page.click("#camera-pause")
        asked = len(visit.bodies)
        visit.page.wait_for_timeout(300)
        assert len(visit.bodies) == asked
        assert visit.page.text_content("#camera-state") == "Paused"
        visit.page.focus("#camera-size")
        visit.page.keyboard.press("Home")
        assert visit.page.text_content("#camera-size-shown") == "64 pixels"
        visit.page.keyboard.press("ArrowRight")
        with visit.page.expect_request("**/chat/completions") as request:
            visit.page.click("#camera-pause")
        assert request.value.post_data_json["image_size"] == 128
        visit.page.click("#show-chat")
        assert visit.page.evaluate("document.querySelector('#video').srcObject") is None
        visit.page.click("#show-camera")
        assert visit.page.text_content("#camera-start") == "Start camera"


def test_what_the_server_refuses_pauses_it(browser, server):
    with filming(browser, server.url, expected=["status of 400"]) as visit:
        visit.page.click("#open-settings")
        visit.page.fill("#max-tokens", "1000000")
        visit.page.keyboard.press("Enter")
        assert "max_completion_tokens must be at most" in visit.notice()
        assert visit.page.text_content("#camera-pause") == "Resume"
        asked = len(visit.bodies)
        visit.page.wait_for_timeout(200)
        assert len(visit.bodies) == asked


def test_a_full_server_is_told_and_forgotten(browser, server):
    """Its answer is the browser's own here: the page's side of it is what is tried."""
    full = {"error": {"message": "The server is full."}}
    with visiting(browser, server.url, permissions=["camera"], expected=["status of 429"]) as visit:
        visit.page.wait_for_selector("#model:not([hidden])")
        visit.page.route(
            "**/chat/completions", lambda route: route.fulfill(status=429, json=full, headers={"Retry-After": "1"})
        )
        visit.page.click("#show-camera")
        visit.page.click("#camera-start")
        assert visit.notice() == "The server is full. The camera goes on then."
        assert len(visit.bodies) == 1
        visit.page.unroute("**/chat/completions")
        visit.page.wait_for_selector("#caption:not(:empty)")
        visit.page.wait_for_selector("#notice:empty", state="attached")


def test_a_camera_that_is_refused(browser, server):
    with visiting(browser, server.url) as visit:
        visit.page.click("#show-camera")
        visit.page.click("#camera-start")
        denied = "Camera access was denied. Allow it for this page in the browser, then start the camera again."
        assert visit.notice() == denied
        assert visit.page.text_content("#camera-start") == "Start camera"


def test_no_camera(browser, server):
    with launched(browser.browser_type) as other, visiting(other, server.url, permissions=["camera"]) as visit:
        visit.page.click("#show-camera")
        visit.page.click("#camera-start")
        assert visit.notice() == "No camera was found. Connect one and start it again."
