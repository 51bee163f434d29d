"""The server over HTTP: texts are generate's, nobody gets another's, and whoever leaves is let go."""

import concurrent.futures
import json
import random
import socket
import threading
import time

import httpx
import pytest
from PIL import Image

from mlx_fastvlm import Engine, decide, generate
from tests.support.server import Running, chat, chunks, data_uri, running, streamed_text, wait_for

IMAGES = [Image.new("RGB", (90, 60), "red"), Image.new("L", (40, 70), 40), Image.new("RGB", (256, 256), "blue")]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server():
    with running(max_rows=8, max_queue=300) as server:
        yield server


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


def idle(server):
    return lambda: server.service.worker.rows == 0 == len(server.service.waiting) == server.service._open.total()


def metric(client, name):
    lines = client.get("/metrics").text.splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith(f"fastvlm_{name} ")))


def endless(**fields):
    return chat("Tell me a long story.", max_tokens=4000, min_tokens=4000, **fields)


def test_health_and_readiness(client):
    assert client.get("/health").json() == {"status": "ok"}
    assert client.head("/health").status_code == 200
    assert client.get("/ready").json()["status"] == "ready"
    assert client.get("/ready").headers["x-request-id"].startswith("req_")


def jobs(count, seed):
    """Requests of many kinds, with what generate says to each."""
    draw = random.Random(seed)
    for i in range(count):
        images = draw.sample(IMAGES, draw.choice([0, 0, 1, 1, 2]))
        options = {"max_tokens": draw.choice([1, 5, 20, 40]), "image_size": 128}
        options |= draw.choice(
            [
                {},
                {"temperature": 1.0, "seed": i},
                {"stop": ["a", "big"]},
                {"frequency_penalty": 1.0},
                {"top_p": 0.8, "temperature": 0.7, "seed": 3 * i},
                {"repetition_penalty": 1.3},
                {"min_tokens": 5, "max_tokens": 30},
                {"image_size": 256},
            ]
        )
        prompt = draw.choice(["What is this?", "Describe the image in English.", "Hello!", "How many? " * 9])
        yield prompt, images, options


def answer(client, prompt, images, options, stream):
    body = chat(prompt, *images, **options)
    if not stream:
        return client.post(CHAT, json=body).json()["choices"][0]["message"]["content"]
    with client.stream("POST", CHAT, json={**body, "stream": True}) as response:
        found, done = chunks(response.iter_lines())
    assert done
    assert len({chunk["id"] for chunk in found}) == 1
    return streamed_text(found)


def test_a_crowd_hears_what_generate_says(server, demo):
    """60 requests of all kinds, arriving at random, half of them streamed; ``/health`` answers meanwhile."""
    crowd = list(jobs(60, seed=1))
    expected = [generate(*demo, prompt, images or None, **options) for prompt, images, options in crowd]
    answered = threading.Event()

    def ask(i):
        time.sleep(random.Random(i).random())
        with server.client() as client:
            return answer(client, *crowd[i], stream=i % 2)

    def look():
        with server.client() as client:
            while not answered.wait(0.02):
                assert client.get("/health").status_code == client.get("/ready").status_code == 200

    with concurrent.futures.ThreadPoolExecutor(61) as pool:
        looking = pool.submit(look)
        found = list(pool.map(ask, range(len(crowd))))
        answered.set()
        looking.result(30)
    assert found == expected
    wait_for(idle(server))


def test_who_leaves_harms_nobody(server, client, demo):
    """A third vanishes at random moments, streaming or not; the others hear what generate says."""
    crowd = list(jobs(36, seed=2))
    expected = [generate(*demo, prompt, images or None, **options) for prompt, images, options in crowd]
    cancelled = metric(client, "cancelled_requests_total")

    def ask(i):
        if i % 3:
            return answer(client, *crowd[i], stream=i % 2)
        with pytest.raises(httpx.TimeoutException), server.client() as mine:  # noqa: PT012  leaving is closing, too
            mine.timeout = httpx.Timeout(random.Random(i).uniform(0.02, 0.5), connect=30)
            with mine.stream("POST", CHAT, json=endless(stream=i % 2 == 0)) as response:
                start = time.perf_counter()
                for _ in response.iter_lines():
                    if time.perf_counter() - start > mine.timeout.read:
                        raise httpx.ReadTimeout("left")
        return expected[i]

    with concurrent.futures.ThreadPoolExecutor(36) as pool:
        assert list(pool.map(ask, range(len(crowd)))) == expected
    wait_for(idle(server))
    assert metric(client, "cancelled_requests_total") == cancelled + 12
    assert metric(client, "running_rows") == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_row_is_free_within_one_step_of_the_goodbye(server, monkeypatch, stream):
    """Counted by the engine: from the worker's first look at the flag on, it makes no step with that row."""
    steps, step = [], Engine.step

    def noted(engine):
        flags = [work.cancelled for work in server.service._works]
        ran = step(engine)
        steps.append((any(flags), len(engine._rows)))
        return ran

    monkeypatch.setattr(Engine, "step", noted)
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        body = json.dumps(endless(stream=stream)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
        raw.sendall(head.encode() + b"%d\r\n\r\n" % len(body) + body)
        wait_for(lambda: server.service.worker.rows == 1 and len(steps) > 5)
    wait_for(idle(server))
    assert sum(flagged for flagged, _ in steps) <= 1
    assert len(steps) < 3900


def test_several_answers_and_prompts(client, demo):
    body = {"prompt": ["Hello", "What is this?"], "n": 2, "temperature": 1, "seed": 7, "max_tokens": 8}
    choices = client.post("/v1/completions", json=body).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in choices]
    assert texts == [
        generate(*demo, prompt, temperature=1, seed=7 + i, max_tokens=8)
        for prompt in ("Hello", "What is this?")
        for i in range(2)
    ]


def test_decisions(client, demo):
    body = {"question": "Is it red?", "images": [data_uri(IMAGES[0])], "choices": ["Yes", "No", "Yes, it is"]}
    told = client.post("/v1/decisions", json=body).json()
    expected = decide(*demo, "Is it red?", IMAGES[0], choices=body["choices"])
    assert told["choice"] == expected.choice
    assert told["probabilities"] == pytest.approx(expected.probabilities, rel=1e-4)


def test_responses(client, demo):
    body = {"input": "What is this?", "max_output_tokens": 9}
    told = client.post("/v1/responses", json=body).json()
    assert told["output"][0]["content"][0]["text"] == generate(*demo, "What is this?", max_tokens=9)
    with client.stream("POST", "/v1/responses", json={**body, "stream": True}) as response:
        lines = list(response.iter_lines())
    found, done = chunks(lines)
    assert not done
    assert [chunk["sequence_number"] for chunk in found] == list(range(len(found)))
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert names == [chunk["type"] for chunk in found]
    assert names[0] == "response.created"


def test_a_repeated_prompt_is_not_read_again(client):
    body = chat("Is anything of this known already?", IMAGES[2], max_tokens=2)
    first, second = (client.post(CHAT, json=body).json()["usage"] for _ in range(2))
    assert second["prompt_tokens_details"]["cached_tokens"] > first["prompt_tokens_details"]["cached_tokens"]
    assert metric(client, "vision_cache_hits") + metric(client, "prefix_cache_hits") > 0


def test_a_stream_says_something_while_it_waits(demo):
    with (
        running(max_rows=1, keep_alive=0.05) as server,
        server.client() as client,
        client.stream("POST", CHAT, json=endless(stream=True)) as first,
    ):
        row = first.iter_lines()  # held, since httpx closes the response with it
        next(row)
        with client.stream("POST", CHAT, json=chat("Hello", stream=True, max_tokens=5)) as second:
            lines = second.iter_lines()
            assert [next(lines) for _ in range(4)] == [": waiting", ""] * 2
            first.close()
            found, done = chunks(lines)
    assert done
    assert streamed_text(found) == generate(*demo, "Hello", max_tokens=5)


def test_too_many_are_told_when_to_come_again():
    with running(max_rows=1, max_queue=1) as server, server.client() as client:
        with client.stream("POST", CHAT, json=endless(stream=True)) as first:
            lines = first.iter_lines()  # held, since httpx closes the response with it
            next(lines)
            waiting = threading.Thread(target=lambda: client.post(CHAT, json=chat("Hello", max_tokens=1)))
            waiting.start()
            wait_for(lambda: len(server.service.waiting) == 1)
            refused = client.post(CHAT, json=chat("Hello"))
            assert client.get("/health").status_code == 200
        waiting.join(30)
        assert client.post(CHAT, json=chat("Hello", max_tokens=1)).status_code == 200
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"


KEYS = ("first-key-123", "second-key-456")


def test_one_client_can_not_keep_others_out():
    """All places are taken by one; another gets the next turn, at the cost of the first one's latest."""
    greedy, modest = ({"Authorization": f"Bearer {key}"} for key in KEYS)
    with running(max_rows=1, max_queue=4, api_keys=KEYS) as server:
        pool = concurrent.futures.ThreadPoolExecutor(5)
        with server.client(headers=greedy) as one, server.client(headers=modest) as other, pool:
            futures = []
            for count in range(1, 6):
                futures.append(pool.submit(one.post, CHAT, json=chat("Hello", max_tokens=40, min_tokens=40)))
                wait_for(lambda count=count: server.service._open.total() == count)
            wait_for(lambda: len(server.service.waiting) == 4)
            assert other.post(CHAT, json=chat("Hello", max_tokens=1)).status_code == 200
            assert sum(not future.done() for future in futures) >= 2
            assert [future.result(60).status_code for future in futures] == [200, 200, 200, 200, 429]


def test_a_time_limit():
    with running(request_timeout=0.3) as server, server.client() as client:
        response = client.post(CHAT, json=endless())
        assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
        assert response.headers["x-should-retry"] == "false"
        with client.stream("POST", CHAT, json=endless(stream=True)) as response:
            found, _ = chunks(response.iter_lines())
        assert found[-1]["error"]["code"] == "timeout"
        assert found[0]["choices"][0]["delta"]["role"] == "assistant"
        wait_for(idle(server))
        assert client.post(CHAT, json=chat("Hello", max_tokens=1)).status_code == 200


def test_a_fault_ends_its_request_only(server, client, demo, monkeypatch):
    from mlx_fastvlm.generation.row import Row  # noqa: PLC0415  only here

    deliver = Row.deliver

    def broken(row, pick, model):
        if row.options.seed == 13 and row.produced == 3:
            raise ValueError("secret words")
        return deliver(row, pick, model)

    monkeypatch.setattr(Row, "deliver", broken)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        whole = pool.submit(client.post, CHAT, json=chat("What can you do?", seed=13, max_tokens=9))
        stream = pool.submit(client.post, CHAT, json=chat("What can you do?", seed=13, max_tokens=9, stream=True))
        good = pool.submit(client.post, CHAT, json=chat("Hello", max_tokens=30))
        assert good.result().json()["choices"][0]["message"]["content"] == generate(*demo, "Hello", max_tokens=30)
    assert whole.result().status_code == 500
    found, _ = chunks(stream.result().text.splitlines())
    assert stream.result().status_code == 200
    assert set(found[-1]["error"]) == {"message", "type", "param", "code"}
    assert "secret" not in whole.result().text + stream.result().text


def loaded_when(event):
    def load():
        assert event.wait(60)
        raise RuntimeError("cannot be loaded")

    return load


def test_not_ready_before_the_model_is():
    event = threading.Event()
    with Running(loaded_when(event)) as server, server.client() as client:
        assert client.get("/health").status_code == 200
        for response in (client.get("/ready"), client.post(CHAT, json=chat("Hello")), client.get("/v1/models")):
            assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
            assert "retry-after" in response.headers
        event.set()
        wait_for(lambda: not server.service.worker.alive)
        assert client.get("/ready").status_code == 503


@pytest.mark.parametrize("how", ["hangs", "dies"])
def test_a_lost_worker(how, monkeypatch):
    """/ready says so, whoever waits is told, and after a limit the process ends with an error."""
    go_on, step = threading.Event(), Engine.step

    def lost(engine):
        if go_on.is_set() or len(engine._rows) == 0:
            return step(engine)
        if how == "dies":
            raise SystemExit
        assert go_on.wait(60)
        return step(engine)

    monkeypatch.setattr(Engine, "step", lost)
    with running(hang_limit=0.3, exit_after=0.3) as server, server.client() as client:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            whole = pool.submit(client.post, CHAT, json=chat("Hello"))
            stream = pool.submit(client.post, CHAT, json=chat("Hello", stream=True))
            responses = [whole.result(30), stream.result(30)]
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
        assert client.post(CHAT, json=chat("Hello")).status_code == 503
        wait_for(lambda: server.exits)
        go_on.set()
    assert server.exits[0] not in (0, None)
    for response in responses:
        if response.status_code == 200:
            assert chunks(response.text.splitlines())[0][-1]["error"]["type"] == "server_error"
        else:
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "unavailable"


def test_a_busy_worker_is_no_hanging_one():
    with running(hang_limit=5.0, exit_after=0.1) as server, server.client() as client:
        client.post(CHAT, json=chat("Hello", max_tokens=50))
        time.sleep(0.3)
        assert client.get("/ready").status_code == 200
    assert server.exits == []
