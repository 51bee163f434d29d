"""Takes the images of the server's page in docs/: page-chat.png, page-camera.png, page-phone.png, and live.gif.

    python -m docs.figures.page

Everything in them is real: the page in Chromium, before a server with the demo checkpoint, and a camera that plays a
film of its world. The times in them are those of the machine that takes them; let nothing else run beside it. Needs
playwright, Chromium and the extra `server`.
"""

import base64
import io
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from PIL import Image

from tests.support.chromium import chromium, visiting, write_film
from tests.support.paths import ROOT
from tests.support.scripts import load_script
from tests.support.server import running

HERE = Path(__file__).parent
IMAGE = ROOT / "examples" / "images" / "shapes-1.png"
QUESTIONS = ["What are these?", "What is to the left of the star?"]

RATE = 10  # frames a second of the film
HELD = 3.0  # seconds of each scene
SWAY = 0.02  # how far its shapes move about, 1 is the width
WIDTH, HEIGHT = 640, 360
PALE, DARK = (236, 239, 243), (34, 38, 46)
# What the film shows: (shape, colour, size, x, y) of each thing, and what they lie on.
FILM = [
    ([("heart", "red", "big", 0.38, 0.38), ("star", "blue", "big", 0.63, 0.62)], PALE),
    ([("circle", "yellow", "big", 0.62, 0.38), ("cross", "cyan", "small", 0.37, 0.63)], DARK),
    ([("triangle", "green", "big", 0.37, 0.6)], PALE),
    ([("square", "orange", "big", 0.36, 0.39), ("heart", "pink", "small", 0.64, 0.62)], DARK),
]
RECORDED = HELD * len(FILM)  # seconds of live.gif
SHOWN = 8  # frames a second of it


def film():
    """The frames: each scene's shapes circle a little, so that it looks alive."""
    scenes = load_script("examples/demo/scenes.py")
    for things, tint in FILM:
        placed = [
            scenes.Thing(shape, colour, size, x, y, sum(scenes.RADII[size]) / 2, 0.0, scenes.COLOURS[colour])
            for shape, colour, size, x, y in things
        ]
        count = round(HELD * RATE)
        for i in range(count):
            x, y = SWAY * wave(i / count), SWAY / 2 * wave(i / count + 0.25)
            moved = tuple(replace(thing, x=thing.x + x, y=thing.y + y, turn=400 * x) for thing in placed)
            yield scenes.draw(scenes.Scene(0, moved, 1.0, HEIGHT / WIDTH, "plain", (tint, tint)), WIDTH)


def wave(part):
    """From 0 up to 1, down to -1 and back, once for each whole ``part``."""
    return 1 - 4 * abs((part + 0.25) % 1 - 0.5)


def converse(page):
    page.set_input_files("#files", IMAGE)
    page.wait_for_selector("#thumbnails li")
    for question in QUESTIONS:
        page.fill("#prompt", question)
        page.press("#prompt", "Enter")
        page.wait_for_selector("#send:not([hidden])")
    page.evaluate("document.activeElement.blur()")


def choose(page):
    """The settings, with a JSON schema."""
    page.click("#open-settings")
    page.click("#schema-example")
    page.evaluate("document.activeElement.blur()")
    page.evaluate(
        "[document.querySelector('#schema'), document.querySelector('#settings')].forEach((it) => it.scrollTo(0, 0))"
    )


def watch(page):
    """The camera, once it has a rate, and has just said something whole about a scene that is new."""
    page.click("#show-camera")
    page.click("#camera-start")
    page.wait_for_function("() => parseFloat(document.querySelector('#camera-rate').textContent) > 0")
    last = page.text_content("#caption")
    page.wait_for_function(
        "(last) => ((now) => now !== last && now.endsWith('.'))(document.querySelector('#caption').textContent)",
        arg=last,
    )


def shot(page):
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def save(image, name):
    image.save(HERE / name, optimize=True)


def opened(browser, url, scheme, width, height, scale=1.5, **options):
    viewport = {"width": width, "height": height}
    settings = {"viewport": viewport, "device_scale_factor": scale, "color_scheme": scheme, **options}
    return visiting(browser, url, permissions=["camera"], **settings)


def take(browser, url, scheme, do, size, **options):
    with opened(browser, url, scheme, *size, **options) as visit:
        visit.page.wait_for_selector("#model:not([hidden])")
        do(visit.page)
        return shot(visit.page)


def beside(images, gap=36):
    height = max(image.height for image in images)
    whole = Image.new("RGB", (sum(image.width + gap for image in images) - gap, height), (128, 132, 140))
    left = 0
    for image in images:
        whole.paste(image, (left, 0))
        left += image.width + gap
    return whole


def record(browser, url):
    """What the browser painted meanwhile: [(seconds, image)]."""
    painted = []
    with opened(browser, url, "dark", 960, 540, scale=1) as visit:
        visit.page.wait_for_selector("#model:not([hidden])")
        watch(visit.page)
        cast = visit.context.new_cdp_session(visit.page)

        def keep(frame):
            painted.append((frame["metadata"]["timestamp"], frame["data"]))
            cast.send("Page.screencastFrameAck", {"sessionId": frame["sessionId"]})

        cast.on("Page.screencastFrame", keep)
        cast.send("Page.startScreencast", {"format": "png"})
        end = time.monotonic() + RECORDED + 1
        while time.monotonic() < end:
            visit.page.wait_for_timeout(100)
        cast.send("Page.stopScreencast")
    return painted


def animate(painted, name):
    """A GIF with what was on the screen at each of its moments."""
    start, frames = painted[0][0], []
    for i in range(round(RECORDED * SHOWN)):
        data = [data for at, data in painted if at <= start + i / SHOWN][-1]
        frames.append(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    palette = beside(frames[:: len(frames) // 8], 0).quantize(128, method=Image.Quantize.MAXCOVERAGE)
    drawn = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    drawn[0].save(
        HERE / name, save_all=True, append_images=drawn[1:], duration=round(1000 / SHOWN), loop=0, optimize=False
    )


def main():
    with tempfile.TemporaryDirectory() as folder, running() as server:
        path = write_film(Path(folder) / "film.y4m", list(film()), seconds=1 / RATE, rate=RATE)
        with chromium(path) as browser:
            url = server.url
            save(take(browser, url, "light", converse, (1100, 800)), "page-chat.png")
            save(take(browser, url, "dark", watch, (1100, 560)), "page-camera.png")
            phone = {"size": (390, 760), "scale": 1, "is_mobile": True, "has_touch": True}
            phones = [("light", converse), ("dark", choose), ("light", watch)]
            save(beside([take(browser, url, scheme, do, **phone) for scheme, do in phones]), "page-phone.png")
            animate(record(browser, url), "live.gif")


if __name__ == "__main__":
    main()
