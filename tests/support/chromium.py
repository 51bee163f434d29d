"""A real browser for the page: the system's Chromium, driven by playwright, with a camera that plays a film."""

from __future__ import annotations

import contextlib
import shutil
from urllib.parse import urlsplit

import numpy as np
import pytest

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None

PATH = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def no_browser():
    """Why its tests can't run here; None where they can."""
    if sync_playwright is None:
        return "needs playwright: pip install playwright"
    return None if PATH else "needs Chromium: apt-get install chromium"


NO_BROWSER = no_browser()
needs_chromium = pytest.mark.skipif(NO_BROWSER is not None, reason=str(NO_BROWSER))

# Nothing but the page may use the network, and containers have neither a GPU nor the rights for Chromium's sandbox.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@contextlib.contextmanager
def chromium(film=None):
    """A browser, with a profile of its own that is gone afterwards.

    Args:
        film: a y4m file that its camera plays again and again; without, there is no camera.
    """
    with sync_playwright() as playwright, launched(playwright.chromium, film) as browser:
        yield browser


@contextlib.contextmanager
def launched(kind, film=None):
    """The same of a playwright that runs already: ``browser.browser_type``, as there can be only one in a thread."""
    camera = ["--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={film}"]
    browser = kind.launch(executable_path=PATH, args=[*ARGUMENTS, *(camera if film is not None else [])])
    try:
        yield browser
    finally:
        browser.close()


class Visit:
    """The page, opened in a context of its own, and all that it did there.

    Attributes:
        page: playwright's.
        urls: whatever it asked for, data URIs aside.
        problems: what the console said, from warnings up, and exceptions that nothing caught.
        bodies: what it asked of the model, in OpenAI's fields.
    """

    def __init__(self, context, url):
        self.context, self.url = context, url
        self.urls, self.problems, self.bodies = [], [], []
        context.on("request", self._note)
        context.set_default_timeout(15_000)
        self.page = context.new_page()
        self.page.on("console", lambda said: said.type in ("warning", "error") and self.problems.append(said.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(url)

    def _note(self, request):
        if not request.url.startswith("data:"):
            self.urls.append(request.url.removeprefix("blob:"))
        if request.url.endswith("/chat/completions"):
            self.bodies.append(request.post_data_json)

    def elsewhere(self):
        """The addresses of other machines, and other ports of this one, that were asked."""
        return [url for url in self.urls if urlsplit(url).netloc != urlsplit(self.url).netloc]

    def ask(self, question):
        """Type it, send it by Enter, and wait for the whole answer: its text."""
        self.page.fill("#prompt", question)
        self.page.press("#prompt", "Enter")
        return self.answer()

    def answer(self):
        """The last one, once it is whole."""
        self.page.wait_for_selector("#send:not([hidden])")
        return self.page.text_content("#messages > li:last-child .text")

    def notice(self):
        """What the page says is wrong, once it says something."""
        return self.page.wait_for_selector("#notice:not(:empty)").text_content()


@contextlib.contextmanager
def visiting(browser, url, *, expected=(), permissions=(), **options):
    """The page, freshly opened; afterwards nothing may have gone wrong in it, or left the machine.

    Args:
        expected: parts of what the console may say, such as the status of a request that is to fail.
        permissions: what it is allowed, such as "camera".
        options: of the browser's context, such as ``viewport``.
    """
    context = browser.new_context(permissions=list(permissions), **options)
    try:
        visit = Visit(context, url)
        yield visit
        assert [said for said in visit.problems if not any(part in said for part in expected)] == []
        assert visit.urls
        assert visit.elsewhere() == []
    finally:
        context.close()


def write_film(path, images, *, seconds=1.5, rate=4):
    """A y4m file that shows one image after the other, ``seconds`` each. Images: of one size, with even sides."""
    width, height = images[0].size
    with open(path, "wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F{rate}:1 Ip A1:1 C420jpeg\n".encode())
        for image in images:
            frame = b"FRAME\n" + _planes(image)
            for _ in range(round(seconds * rate)):
                file.write(frame)
    return path


def _planes(image):
    """Brightness of each pixel, and the two colours of each four, in the ranges that video has."""
    full = np.asarray(image.convert("RGB").convert("YCbCr"), dtype=np.float32)
    light = 16 + full[..., 0] * (219 / 255)
    height, width = light.shape
    colours = full[..., 1:].reshape(height // 2, 2, width // 2, 2, 2).mean(axis=(1, 3))
    colours = 128 + (colours - 128) * (224 / 255)
    return b"".join(np.rint(plane).astype(np.uint8).tobytes() for plane in (light, colours[..., 0], colours[..., 1]))
