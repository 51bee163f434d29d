"""A server on loopback, in a thread of this process, and what it is asked."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time

import httpx
from PIL import Image

import mlx_fastvlm
from mlx_fastvlm.server.service import Service
from mlx_fastvlm.server.serving import Server, bound
from mlx_fastvlm.server.settings import ServerSettings


class Running:
    """A server that answers.

    Attributes:
        url: where.
        service: its inside, for looking at.
        exits: codes with which it would have ended the process.
    """

    def __init__(self, load=None, **settings):
        self.exits = []
        self.settings = ServerSettings(**{"port": 0, **settings})
        self.service = Service(self.settings, load or (lambda: mlx_fastvlm.load("demo")), self.exits.append)
        self._listener = bound(self.settings.host, self.settings.port)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = Server(self.service)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), daemon=True)

    def __enter__(self):
        self.service.worker.start()
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
            assert self._thread.is_alive()
        return self

    def __exit__(self, *_):
        self._server._loop.call_soon_threadsafe(self.service.end_all)
        self._server.should_exit = True
        self._thread.join(30)
        self.service.worker.stop(30)
        self._listener.close()

    def client(self, **options):
        return httpx.Client(
            base_url=self.url, timeout=60, verify=False, **options
        )  # no TLS: certificates are slow to load


@contextlib.contextmanager
def running(load=None, **settings):
    """A server whose model is loaded."""
    with Running(load, **settings) as server:
        server.service.worker.wait_until_loaded()
        yield server


def wait_for(holds, seconds=30):
    """Until it holds, which it must in that time."""
    end = time.perf_counter() + seconds
    while not holds():
        assert time.perf_counter() < end
        time.sleep(0.005)


def data_uri(image: Image.Image, format="PNG"):
    file = io.BytesIO()
    image.save(file, format)
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def chat(prompt, *images, **fields):
    """The body of a chat request."""
    parts = [{"type": "image_url", "image_url": {"url": data_uri(image)}} for image in images]
    content = [*parts, {"type": "text", "text": prompt}]
    return {"model": "demo", "messages": [{"role": "user", "content": content}], **fields}


def chunks(lines):
    """The JSON of a stream's events, and whether ``[DONE]`` came last; comments are passed over."""
    found, done = [], False
    for line in lines:
        if line.startswith("data: "):
            assert not done
            done = line == "data: [DONE]"
            found += [] if done else [json.loads(line.removeprefix("data: "))]
    return found, done


def streamed_text(found):
    return "".join(choice["delta"].get("content") or "" for chunk in found for choice in chunk.get("choices", []))
