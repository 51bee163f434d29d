"""What happens before the queue: threads that nobody has for himself, time limits, and images that are too much."""

import base64
import concurrent.futures
import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from mlx_fastvlm.server import asking
from tests.support.server import chat, data_uri, running, wait_for

CHAT = "/v1/chat/completions"
KEYS = ("first-key-123", "second-key-456")


@pytest.fixture
def slow(monkeypatch):
    """Requests that say "slow" wait in the pool until they may go on; counts those that do."""
    go_on, inside, prepare = threading.Event(), [], asking.prepare

    def slow(data, *others):
        if b"slow" in data:
            inside.append(threading.current_thread().name)
            assert go_on.wait(60)
            inside.pop()
        return prepare(data, *others)

    monkeypatch.setattr(asking, "prepare", slow)
    slow.go_on, slow.inside = go_on, inside
    yield slow
    go_on.set()


def test_one_client_never_has_all_threads(slow):
    keys = [{"Authorization": f"Bearer {key}"} for key in KEYS]
    with (
        running(api_keys=KEYS, decode_threads=3) as server,
        server.client(headers=keys[0]) as many,
        server.client(headers=keys[1]) as one,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        waiting = [pool.submit(many.post, CHAT, json=chat("slow", max_tokens=1)) for _ in range(8)]
        wait_for(lambda: server.service._open.total() == 8)
        assert one.post(CHAT, json=chat("quick", max_tokens=1)).status_code == 200
        assert len(slow.inside) == 2
        slow.go_on.set()
        assert [future.result(60).status_code for future in waiting] == [200] * 8


def test_preparing_counts_in_the_time_limit(slow):
    with running(request_timeout=0.2) as server, server.client() as client:
        response = client.post(CHAT, json=chat("slow"))
        assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
        assert server.service._open.total() == 0
        assert client.get("/ready").status_code == 200


def test_who_leaves_while_it_is_prepared_gets_no_row(slow):
    with running() as server, server.client() as client:
        with pytest.raises(Exception, match="timed out"):
            client.post(CHAT, json=chat("slow"), timeout=0.2)
        wait_for(lambda: not server._server.server_state.connections)
        time.sleep(0.1)
        slow.go_on.set()
        wait_for(lambda: server.service._open.total() == 0)
        time.sleep(0.1)
        assert server.service.worker.engine.steps == 0


def bomb():
    """A PNG of few bytes and many pixels."""
    file = io.BytesIO()
    Image.new("1", (9000, 9000)).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()))


def animation():
    file = io.BytesIO()
    frames = [Image.fromarray(np.full((200, 300), i, np.uint8)) for i in range(3)]
    frames[0].save(file, "TIFF", save_all=True, append_images=[*frames[1:], Image.new("L", (400, 500))])
    return "data:image/tiff;base64," + base64.b64encode(file.getvalue()).decode()


def about_a_film(size):
    film = pytest.importorskip("tests.support.films", reason="needs PyAV, of the extra test").film(
        seconds=1, rate=5, size=size
    )
    url = "data:video/mp4;base64," + base64.b64encode(film).decode()
    parts = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "a"}]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 1, "max_frames": 1}


def test_images_of_too_many_pixels():
    with running(max_pixels=100_000) as server, server.client() as client:
        small, large = Image.new("RGB", (250, 400)), Image.new("RGB", (251, 400))
        assert client.post(CHAT, json=chat("a", small, max_tokens=1)).status_code == 200
        for image in (large, bomb()):
            response = client.post(CHAT, json=chat("a", image))
            assert response.status_code == 400
            assert "pixels" in response.json()["error"]["message"]
        parts = [{"type": "image_url", "image_url": {"url": animation()}}, {"type": "text", "text": "a"}]
        body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}
        assert client.post(CHAT, json=body).status_code == 200
        assert client.post(CHAT, json={**body, "frames": 4}).status_code == 400  # its last one is larger
        for size, status in (((250, 400), 200), ((400, 400), 400)):
            response = client.post(CHAT, json=about_a_film(size))
            assert response.status_code == status, response.text
        assert client.get("/ready").status_code == 200


def test_too_many_images():
    with running(max_images=3) as server, server.client() as client:
        tiny = Image.new("L", (1, 1))
        assert client.post(CHAT, json=chat("a", tiny, tiny, tiny, max_tokens=1)).status_code == 200
        assert client.post(CHAT, json=chat("a", *[tiny] * 4)).status_code == 400
        many = {"type": "image_url", "image_url": {"url": data_uri(tiny)}}
        body = {"messages": [{"role": "user", "content": [many] * 10_000}]}
        assert client.post(CHAT, json=body).status_code == 400


def test_bytes_of_a_request_are_let_go_before_its_answer():
    with running(max_rows=1) as server, server.client() as client:
        body = chat("Hello", Image.effect_noise((300, 300), 90), max_tokens=4000, min_tokens=4000, stream=True)
        with client.stream("POST", CHAT, json=body) as response:
            lines = response.iter_lines()
            next(lines)
            assert server.service.bodies._held == {}
