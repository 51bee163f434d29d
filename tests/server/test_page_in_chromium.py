"""The page's chat in a real browser: images, streams, stop, JSON, what goes wrong, and the keyboard alone."""

import base64
import contextlib
import re

import pytest
from PIL import Image

import mlx_fastvlm
from tests.support.chromium import chromium, needs_chromium, visiting
from tests.support.paths import ROOT
from tests.support.server import running, wait_for

pytestmark = needs_chromium

SCENES = [ROOT / "examples" / "images" / f"shapes-{i}.png" for i in (1, 2)]
KEY = "sesame-open-up"
LONG = '{"type": "string", "minLength": 600, "maxLength": 700}'  # an answer of several hundred tokens
DESCRIBE = "What are these?"

# What drag and drop, and the clipboard, bring to the page. (Its policy would not let it fetch a data URI.)
TRANSFER = """(base64) => {
  const bytes = Uint8Array.from(atob(base64), (byte) => byte.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "scene.png", { type: "image/png" }));
  return transfer;
}"""
PASTED = """(clipboardData) =>
  document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }))"""


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser, server):
    with visiting(browser, server.url) as visit:
        visit.page.wait_for_selector("#model:not([hidden])")
        yield visit


def attached(visit, count):
    visit.page.wait_for_selector(f"#thumbnails li:nth-child({count})")


def pick(visit, scene):
    with visit.page.expect_file_chooser() as chosen:
        visit.page.click("#pick-first")
    chosen.value.set_files(scene)


def transfer_of(visit, scene):
    return visit.page.evaluate_handle(TRANSFER, base64.b64encode(scene.read_bytes()).decode())


def drop(visit, scene):
    transfer = transfer_of(visit, scene)
    visit.page.dispatch_event("body", "dragover", {"dataTransfer": transfer})
    assert visit.page.evaluate("getComputedStyle(document.body, '::after').content") == '"Drop images to add them"'
    visit.page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    assert visit.page.evaluate("getComputedStyle(document.body, '::after').content") == "none"


def paste(visit, scene):
    visit.page.evaluate(PASTED, transfer_of(visit, scene))


@pytest.mark.parametrize("add", [pick, drop, paste])
def test_an_image_comes_and_is_asked_about(visit, demo, add):
    add(visit, SCENES[0])
    attached(visit, 1)
    assert visit.ask(DESCRIBE) == mlx_fastvlm.generate(*demo, DESCRIBE, SCENES[0])
    assert re.search(r"first token after [\d.]+ m?s.* · \d+ tokens", visit.page.text_content(".about"))
    assert visit.page.locator("#thumbnails li").count() == 0
    assert visit.page.locator("#messages .asked img").count() == 1
    assert visit.page.input_value("#prompt") == ""
    assert visit.page.text_content("#said") == visit.answer()  # a screen reader hears it once, whole


def test_a_conversation(visit, demo):
    visit.page.set_input_files("#files", SCENES[0])
    attached(visit, 1)
    first = visit.ask(DESCRIBE)
    second = visit.ask("What colour is the star?")
    assert second == "Blue."
    assert [message["content"] for message in visit.bodies[1]["messages"]][1:] == [first, "What colour is the star?"]
    visit.page.click("#clear")
    assert visit.page.locator("#messages li").count() == 0
    assert visit.page.is_visible("#welcome")
    visit.ask(DESCRIBE)
    assert len(visit.bodies[2]["messages"]) == 1


def test_the_demo_has_its_own_image_and_questions(visit):
    visit.page.click("#draw-shapes")
    attached(visit, 1)
    visit.page.press("#prompt", "Enter")
    assert re.fullmatch(r"A (big|small) .*\.", visit.answer())
    visit.page.click("#presets button:nth-child(2)")
    assert visit.page.input_value("#prompt") == "How many circles are there?"


def long_answers(visit):
    visit.page.click("#open-settings")
    visit.page.fill("#schema", LONG)
    visit.page.keyboard.press("Escape")


def test_answers_come_piece_by_piece_in_view(visit):
    long_answers(visit)
    visit.page.evaluate("""() => {
      window.seen = [];
      const note = () => seen.push(document.querySelector("#messages > li:last-child .text")?.textContent ?? "");
      new MutationObserver(note).observe(document.querySelector("#messages"), { childList: true, subtree: true });
    }""")
    whole = visit.ask("Hello.")
    seen = visit.page.evaluate("seen")
    assert len(set(seen) - {"", whole}) > 1  # how many depends on how busy the machine is
    assert all(whole.startswith(text) for text in seen)
    box = visit.page.locator(".about").bounding_box()
    assert 0 < box["y"] < visit.page.locator(".composer").bounding_box()["y"]


@pytest.mark.parametrize("by", ["button", "key"])
def test_stop(visit, server, by):
    long_answers(visit)
    visit.page.fill("#prompt", "Hello.")
    visit.page.press("#prompt", "Enter")
    visit.page.wait_for_selector("#messages > li:last-child .text:not(:empty)")
    visit.page.click("#stop") if by == "button" else visit.page.keyboard.press("Escape")
    text = visit.answer()
    assert 0 < len(text) < 600
    assert visit.page.text_content("#messages .bad") == "Stopped."
    wait_for(lambda: server.service.worker.rows == 0)
    visit.page.fill("#prompt", "And?")
    visit.page.press("#prompt", "Enter")
    visit.page.click("#stop")
    visit.answer()
    assert [message["content"] for message in visit.bodies[1]["messages"]] == ["Hello.", text, "And?"]


def test_json_by_a_schema_is_shown_as_a_table(visit):
    visit.page.set_input_files("#files", SCENES[0])
    visit.page.click("#open-settings")
    visit.page.click("#schema-example")
    visit.page.click("text=Done")
    visit.page.wait_for_selector("#in-force:text-is('JSON schema')")  # told once the dialog has closed
    visit.ask("What colour is the star?")
    assert visit.bodies[0]["response_format"]["json_schema"]["schema"]["required"] == ["size", "colour", "shape"]
    assert visit.page.locator("table tbody tr td:first-child").all_text_contents() == ["size", "colour", "shape"]


def test_requests_are_copied(browser, server):
    allowed = ["clipboard-read", "clipboard-write"]
    with visiting(browser, server.url, permissions=allowed) as visit:
        visit.page.set_input_files("#files", SCENES[0])
        visit.ask(DESCRIBE)
        for kind, word in (("curl", "base64 < image-1.png"), ("Python", "from openai import OpenAI")):
            visit.page.click(f"text=Copy as {kind}")
            visit.page.click("#snippet-copy")
            visit.page.wait_for_selector("text=Copied.")
            assert word in visit.page.evaluate("navigator.clipboard.readText()")
            visit.page.click("#snippet-close")


# What goes wrong


def test_what_is_no_image_is_told(visit):
    visit.page.set_input_files("#files", {"name": "notes.png", "mimeType": "image/png", "buffer": b"?"})
    assert visit.notice() == "notes.png is no image that this browser can read. Send it as JPEG or PNG."
    visit.page.set_input_files("#files", {"name": "IMG_1.HEIC", "mimeType": "image/heic", "buffer": b"?"})
    visit.page.wait_for_selector("#notice:has-text('HEIC')")
    assert visit.page.locator("#thumbnails li").count() == 0


def test_large_images_are_scaled_down(visit, tmp_path):
    Image.new("RGB", (4096, 1024), "red").save(tmp_path / "wide.png")
    visit.page.set_input_files("#files", tmp_path / "wide.png")
    attached(visit, 1)
    told = visit.page.get_attribute("#thumbnails img", "alt")
    assert re.fullmatch(r"wide\.png, 2048 . 512, scaled down", told)
    visit.page.click("#thumbnails button")
    assert visit.page.locator("#thumbnails li").count() == 0


def test_a_question_is_missing_or_a_setting_wrong(visit):
    visit.page.press("#prompt", "Enter")
    assert visit.notice() == "Write a question first."
    visit.page.click("#open-settings")
    visit.page.fill("#temperature", "warm")
    visit.page.keyboard.press("Enter")
    visit.page.fill("#prompt", "Hello.")
    visit.page.press("#prompt", "Enter")
    visit.page.wait_for_selector("#temperature[aria-invalid='true']:focus")
    assert visit.page.text_content("#settings-problem") == "The temperature must be a number from 0 up."
    visit.page.keyboard.press("Escape")
    assert visit.page.input_value("#prompt") == "Hello."
    assert visit.bodies == []


def test_what_the_server_refuses_is_told_in_its_words(browser, server):
    with visiting(browser, server.url, expected=["status of 400"]) as visit:
        visit.page.click("#open-settings")
        visit.page.fill("#max-tokens", "1000000")
        visit.page.keyboard.press("Enter")
        visit.ask("Hello.")
        assert "max_completion_tokens must be at most" in visit.page.text_content("#messages .bad")
        assert visit.page.input_value("#prompt") == "Hello."


def test_a_server_that_went_away(browser):
    with contextlib.ExitStack() as stack:
        with running() as server:
            visit = stack.enter_context(visiting(browser, server.url, expected=["ERR_CONNECTION"]))
            visit.page.wait_for_selector("#model:not([hidden])")
        visit.ask("Hello.")
        assert visit.page.text_content("#messages .bad") == "The server can't be reached; is it still running?"
        assert visit.page.input_value("#prompt") == "Hello."


def test_a_key_is_asked_for_and_forgotten_with_the_tab(browser):
    with running(api_keys=(KEY,)) as server, visiting(browser, server.url, expected=["status of 401"]) as visit:
        visit.page.wait_for_selector("#api-key[aria-invalid='true']:focus")
        visit.page.keyboard.type(KEY)
        visit.page.keyboard.press("Enter")
        visit.page.wait_for_selector("#model:not([hidden])")
        visit.ask("Hello.")
        assert visit.page.locator("#messages .bad").count() == 0
        visit.page.reload()
        visit.page.wait_for_selector("#model:not([hidden])")  # the same tab
        other = visit.context.new_page()
        other.goto(server.url)
        other.wait_for_selector("#api-key[aria-invalid='true']")


# With the keyboard, on small screens, and under the policy

FOCUSED = """() => {
  const it = document.activeElement;
  const ring = (element) => getComputedStyle(element).outlineStyle !== "none" && getComputedStyle(element).outlineWidth;
  const { top, bottom } = it.getBoundingClientRect();
  return {
    name: it.getAttribute("aria-label") || it.labels?.[0]?.textContent || it.textContent.trim().split("\\n")[0],
    ring: ring(it) === "3px" || ring(it.closest(".composer") ?? it) === "3px",
    inView: top >= 0 && bottom <= innerHeight,
  };
}"""


def tab_to(visit, name):
    """Press Tab until the focus is there; it must be seen all the way. The names on the way."""
    names = []
    while not names or names[-1] != name:
        visit.page.keyboard.press("Tab")
        focused = visit.page.evaluate(FOCUSED)
        assert focused["ring"], focused
        assert focused["inView"], focused
        names.append(focused["name"])
        assert len(names) < 30, names
    return names


def test_the_keyboard_alone(visit):
    assert tab_to(visit, "Draw some shapes") == ["Chat", "Camera", "Settings", "Choose images", "Draw some shapes"]
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector("#prompt:focus")
    visit.page.keyboard.press("Enter")
    visit.answer()
    visit.page.keyboard.type("How many circles are there?")
    assert tab_to(visit, "Send") == ["Add images", "Send"]
    visit.page.keyboard.press("Enter")
    visit.answer()
    assert visit.page.locator("#messages > li").count() == 4
    visit.page.wait_for_selector("#send:focus")  # Stop had it meanwhile
    assert tab_to(visit, "New conversation") == ["Describe", "Count", "Find", "New conversation"]
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector("#prompt:focus")
    visit.page.reload()
    tab_to(visit, "Settings")
    visit.page.keyboard.press("Enter")
    assert tab_to(visit, "API key")[:3] == ["Temperature", "Seed", "Maximum tokens"]
    visit.page.keyboard.press("Escape")
    visit.page.wait_for_selector("#open-settings:focus")


def test_nothing_is_wider_than_the_screen(visit):
    visit.page.set_input_files("#files", SCENES * 2)
    attached(visit, 4)
    visit.page.click("#open-settings")
    visit.page.fill("#max-tokens", "5")
    visit.page.keyboard.press("Enter")
    visit.ask("x" * 300)
    visit.page.set_input_files("#files", SCENES * 4)
    attached(visit, 8)
    for view in ("#show-chat", "#show-camera", "#open-settings"):
        visit.page.click(view)
        for width in (320, 390, 1280):
            visit.page.set_viewport_size({"width": width, "height": 640})
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width, view


def test_the_policy_holds_in_the_browser(visit):
    told = visit.page.evaluate("""async () => {
      const inline = document.createElement("script");
      inline.textContent = "window.ran = true";
      document.head.append(inline);
      const image = new Image();
      const blocked = new Promise((resolve) => image.addEventListener("error", () => resolve("blocked")));
      image.src = "https://192.0.2.1/x.png";
      return [window.ran ?? null, await blocked];
    }""")
    assert told == [None, "blocked"]
    assert len([said for said in visit.problems if "Content Security Policy" in said]) == 2
    assert visit.elsewhere() == ["https://192.0.2.1/x.png"]  # asked for, and refused before it was sent
    visit.problems.clear()
    visit.urls[:] = [visit.url]
