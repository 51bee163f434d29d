"""Odd requests over HTTP: whatever is sent, the answer is an answer or one of OpenAI's error objects, never a 5xx.

    python -m tests.support.http_cases [CASES] [SEED]

Bodies are those of the fuzzer (``fuzz_requests.py``), and methods, addresses and headers that strangers may try.
"""

import json
import random
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.fuzz_requests import Requests
from tests.support.server import running

PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/decisions"]
OTHERS = [
    "/",
    "/v1",
    "/v1/models",
    "/v1/models/demo",
    "/v1/models/%00",
    "/health",
    "/metrics",
    "/page/../app.py",
    "//",
    "/%ff",
]
METHODS = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]
HEADERS = [
    {},
    {"content-type": "text/plain"},
    {"content-type": "application/json; charset=utf-16"},
    {"authorization": "Bearer \x7f"},
    {"origin": "null"},
    {"accept": "image/png"},
    {"x-forwarded-for": "1.2.3.4"},
]


def send(client, requests, seed):
    """One request; the status, and what is wrong with the response or None."""
    rng = random.Random(seed)
    data = requests.make(rng)
    if rng.random() < 0.85:
        method, path, headers = "POST", PATHS[int(data[:1])], {"content-type": "application/json"}
    else:
        method, path, headers = rng.choice(METHODS), rng.choice(PATHS + OTHERS), rng.choice(HEADERS)
    response = client.request(method, path, content=data[1:], headers=headers)
    if response.status_code >= 500:
        return response.status_code, f"{method} {path} {data[:300]!r}: {response.text[:300]}"
    if response.status_code >= 400 and method != "HEAD":
        error = json.loads(response.text)["error"]
        if set(error) != {"message", "type", "param", "code"} or "\n" in error["message"]:
            return response.status_code, f"{method} {path} {data[:300]!r}: {error}"
    return response.status_code, None


def run(cases, seed=0, threads=8):
    """How often each status came, and what was wrong."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(threads) as pool:
        requests = Requests(folder)
        limits = {"max_tokens": 16, "default_max_tokens": 4, "max_queue": 64}
        with running(image_root=Path(folder), **limits) as server, server.client() as client:
            found = list(pool.map(lambda i: send(client, requests, f"{seed} {i}"), range(cases)))
    return Counter(status for status, _ in found), [wrong for _, wrong in found if wrong is not None]


if __name__ == "__main__":
    statuses, wrong = run(*map(int, sys.argv[1:3])) if len(sys.argv) > 1 else run(1000)
    print(dict(sorted(statuses.items())), f"{len(wrong)} wrong")
    print("\n".join(wrong[:10]))
    sys.exit(bool(wrong))
