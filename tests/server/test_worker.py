"""The worker without HTTP: its thread alone computes, rows of who has gone are free, faults stay where they are."""

import dataclasses
import gc
import threading
import time
import types
import weakref

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_fastvlm import Engine, generate, load
from mlx_fastvlm.generation.choices import DecisionReading
from mlx_fastvlm.generation.options import GenerationOptions
from mlx_fastvlm.processing.processor import FastVlmProcessor
from mlx_fastvlm.server import worker as worker_module
from mlx_fastvlm.server.fairness import FairQueue
from mlx_fastvlm.server.work import End, Question, Said, Work, WorkerEnded
from mlx_fastvlm.server.worker import Worker

RED = Image.new("RGB", (80, 60), "red")


class Harness:
    """A worker whose events are kept by request, and may be waited for."""

    def __init__(self, load=lambda: load("demo"), max_rows=4):
        self.queue, self.changed, self.events = FairQueue(), threading.Condition(), {}
        self.worker = Worker(load, self.queue, max_rows, self._send)

    def _send(self, deliveries):
        with self.changed:
            for work, event in deliveries:
                self.events.setdefault(work, []).append(event)
            self.changed.notify_all()

    def __enter__(self):
        self.worker.start()
        self.worker.wait_until_loaded()
        return self

    def __exit__(self, *_):
        assert self.worker.stop(30)

    def work(self, prompt="What is this?", image=None, n=1, choices=None, **options):
        given = GenerationOptions(**options)
        engine = self.worker.engine
        reading = None if choices is None else DecisionReading(engine.processor, choices)
        request = engine.request(prompt, image, given)
        question = Question(request, given if reading is None else reading.options(given), n, reading)
        return Work("client", [question], time.perf_counter())

    def put(self, *arguments, **options):
        work = self.work(*arguments, **options)
        self.queue.put(work, work.client, work.rows)
        return work

    def wait(self, holds):
        with self.changed:
            assert self.changed.wait_for(holds, 60)

    def end(self, work):
        self.wait(lambda: any(isinstance(event, End) for event in self.events.get(work, [])))
        assert isinstance(self.events[work][-1], End)
        return self.events[work][-1]

    def said(self, work, index=0):
        events = [event for event in self.events.get(work, []) if isinstance(event, Said)]
        return [event.response for event in events if event.index == index]

    def text(self, work, index=0):
        assert self.end(work).error is None
        return "".join(response.text for response in self.said(work, index))


@pytest.fixture
def harness():
    with Harness() as harness:
        yield harness


def endless(harness, **options):
    """A request that would take long."""
    return harness.put(max_tokens=4000, min_tokens=4000, **options)


def test_answers_and_decisions(harness, demo):
    several = harness.put("Write.", n=3, temperature=1.0, seed=5, max_tokens=9)
    one = harness.put("What is this?", RED, max_tokens=9)
    decided = harness.put("Is it red?", RED, choices=["Yes", "No"])
    assert harness.text(one) == generate(*demo, "What is this?", RED, max_tokens=9)
    for i in range(3):
        assert harness.text(several, i) == generate(*demo, "Write.", temperature=1.0, seed=5 + i, max_tokens=9)
    (decision,) = harness.end(decided).decisions
    assert decision.choice == "Yes"


def test_one_thread_does_everything(demo, monkeypatch):
    threads = set()
    step, decide, release = Engine.step, DecisionReading.decide, mx.clear_cache

    def noted(function):
        return lambda *arguments: (threads.add(threading.current_thread().name), function(*arguments))[1]

    def loaded():
        threads.add(threading.current_thread().name)
        return load("demo")

    monkeypatch.setattr(Engine, "step", noted(step))
    monkeypatch.setattr(DecisionReading, "decide", noted(decide))
    monkeypatch.setattr(mx, "clear_cache", noted(release))
    monkeypatch.setattr(worker_module, "IDLE", 0.01)
    with Harness(loaded) as harness:
        harness.text(harness.put(max_tokens=2))
        harness.end(harness.put(choices=["a", "b"]))
        time.sleep(0.05)
    assert threads == {"mlx"}


def test_events_hold_plain_values(harness):
    """What crosses to the loop's thread can be copied and compared there without computing."""

    def plain(value):
        if dataclasses.is_dataclass(value):
            return all(plain(getattr(value, field.name)) for field in dataclasses.fields(value))
        if isinstance(value, (list, tuple)):
            return all(map(plain, value))
        if isinstance(value, dict):
            return all(map(plain, [*value, *value.values()]))
        return value is None or type(value) in (int, float, str, bool)

    several = harness.put(n=2, max_tokens=3, top_logprobs=2)
    decided = harness.put(choices=["a", "b"])
    for work in (several, decided):
        harness.end(work)
        assert all(map(plain, harness.events[work]))


def test_preparing_computes_nothing(demo, monkeypatch):
    """Against a model of which there is but the config, and with pixels that nobody may hand to MLX."""
    model, processor = demo
    monkeypatch.setattr(FastVlmProcessor, "to_pixel_values", None)
    monkeypatch.setattr(mx, "array", None)
    engine = Engine.__new__(Engine)
    engine._model, engine.processor = types.SimpleNamespace(config=model.config), processor
    given = GenerationOptions(logit_bias={3: 1.0}, seed=3, temperature=1.0, stop=["a"], top_logprobs=3)
    request = engine.request("What is this?", [RED, np.zeros((9, 9, 3), np.uint8)], given)
    assert len(request.images) == 2
    assert all(type(image.pixels) is np.ndarray for image in request.images)
    DecisionReading(processor, ["a", "b"]).options(GenerationOptions())


def test_a_vanished_clients_row_is_free_within_one_step(harness, monkeypatch):
    works = [endless(harness) for _ in range(4)]
    waiting = harness.put(max_tokens=3)
    harness.wait(lambda: all(harness.said(work) for work in works))
    steps = []
    step = Engine.step

    def noted(engine):
        steps.append([work.cancelled for work in works] + [engine.room])
        return step(engine)

    monkeypatch.setattr(Engine, "step", noted)
    works[1].cancelled = True
    harness.end(waiting)
    first = next(place for place, seen in enumerate(steps) if seen[1])
    assert all(seen[-1] == 0 for seen in steps[:first])  # nobody else gave up a row
    assert len(steps) - first <= 3 + 2  # the waiting one's tokens, and the step in which it was set
    before = len(harness.said(works[1]))
    harness.wait(lambda: len(harness.said(works[0])) > before + 20)
    assert len(harness.said(works[1])) == before
    assert not any(isinstance(event, End) for event in harness.events[works[1]])


def test_a_prompt_is_given_up_between_its_pieces(demo, monkeypatch):
    """Its reading stops; the others' texts are as ever."""
    model, processor = demo
    pieces = []
    with Harness() as harness:
        harness.worker.engine._prefill_step_size = 8
        harness.worker.engine._reader._step_size = 8
        long = harness.work("word " * 100, max_tokens=3, progress=lambda done, total: pieces.append(done))

        def give_up(done, total):
            pieces.append(done)
            if len(pieces) == 2:
                long.cancelled = True

        long.questions[0] = dataclasses.replace(
            long.questions[0], options=dataclasses.replace(long.questions[0].options, progress=give_up)
        )
        harness.queue.put(long, "client")
        other = harness.put("Hello", max_tokens=5)
        assert harness.text(other) == generate(model, processor, "Hello", max_tokens=5)
        assert harness.worker.engine.room == 4
    assert len(pieces) == 2
    assert harness.said(long) == []


def test_cancelled_before_its_turn(harness):
    rows = [endless(harness) for _ in range(4)]
    waiting = endless(harness)
    waiting.cancelled = True
    for row in rows:
        row.cancelled = True
    assert harness.text(harness.put(max_tokens=2))
    assert waiting not in harness.events


def test_an_answers_fault_ends_its_request_only(harness, demo):
    def broken(tokens, logits):
        raise RuntimeError("broken processor")

    bad = harness.put(n=3, logits_processors=[broken])
    good = harness.put("Hello", max_tokens=8)
    late = harness.put(logits_processors=[lambda tokens, logits: logits * float("nan")])
    assert str(harness.end(bad).error) == "broken processor"
    assert harness.end(late).error is not None
    assert harness.text(good) == generate(*demo, "Hello", max_tokens=8)
    harness.wait(lambda: harness.worker.rows == 0)
    assert harness.worker.alive


def test_errors_keep_no_frames(harness):
    """Frames hold arrays, which would outlive their answer and go in another thread."""

    def broken(tokens, logits):
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise RuntimeError("outer") from error

    error = harness.end(harness.put(logits_processors=[broken])).error
    assert error.__traceback__ is error.__cause__ is error.__context__ is None


class Failing:
    """The worker's steps fail as told."""

    def __init__(self, monkeypatch, fails):
        self.count, step = 0, Engine.step

        def failing(engine):
            if threading.current_thread().name != "mlx":
                return step(engine)
            self.count += 1
            if fails(self.count, engine):
                raise RuntimeError("[METAL] insufficient memory")
            return step(engine)

        monkeypatch.setattr(Engine, "step", failing)


def test_a_step_that_fails_once_harms_nobody(harness, demo, monkeypatch):
    Failing(monkeypatch, lambda count, _: count % 3 == 2)
    works = [harness.put("Hello", RED, max_tokens=8), harness.put("Hello", max_tokens=9)]
    assert harness.text(works[0]) == generate(*demo, "Hello", RED, max_tokens=8)
    assert harness.text(works[1]) == generate(*demo, "Hello", max_tokens=9)


def test_too_many_rows_for_the_memory_give_up_the_newest(demo, monkeypatch):
    Failing(monkeypatch, lambda _, engine: len(engine._rows) + len(engine._waiting) > 2)
    with Harness() as harness:
        works = [harness.put("Hello", max_tokens=8) for _ in range(4)]
        ends = [harness.end(work) for work in works]
        assert [end.error is None for end in ends[:2]] == [True, True]
        assert harness.text(works[0]) == harness.text(works[1]) == generate(*demo, "Hello", max_tokens=8)
        assert harness.worker.alive


def test_a_device_beyond_help_ends_the_worker(monkeypatch):
    all_there = threading.Event()
    failing = Failing(monkeypatch, lambda *_: all_there.wait(60))
    harness = Harness()
    with harness:
        works = [harness.put() for _ in range(20)]
        all_there.set()
        for work in works:
            assert harness.end(work).error is not None
        harness.worker._thread.join(30)
        assert not harness.worker.alive
        assert failing.count == worker_module.GIVE_UP
        assert str(harness.worker.error) == "[METAL] insufficient memory"
    assert any(isinstance(harness.end(work).error, WorkerEnded) for work in works)


def test_stopping_tells_everybody(harness):
    works = [endless(harness) for _ in range(6)]
    harness.wait(lambda: harness.said(works[0]))
    assert harness.worker.stop(30)
    assert all(isinstance(harness.end(work).error, WorkerEnded) for work in works)
    assert harness.worker.error is None


def test_a_model_that_can_not_be_loaded():
    def missing():
        raise FileNotFoundError("no such model; check the path.")

    harness = Harness(missing)
    harness.worker.start()
    with pytest.raises(FileNotFoundError, match="check the path"):
        harness.worker.wait_until_loaded()
    harness.worker._thread.join(30)
    assert not harness.worker.alive


def test_the_heartbeat(harness, monkeypatch):
    assert harness.worker.busy_for == 0.0
    step, go_on = Engine.step, threading.Event()

    def hanging(engine):
        assert go_on.wait(60)
        return step(engine)

    monkeypatch.setattr(Engine, "step", hanging)
    work = harness.put(max_tokens=2)
    while not harness.worker.busy_for > 0.05:
        time.sleep(0.01)
    go_on.set()
    assert harness.text(work) is not None
    while harness.worker.busy_for:
        time.sleep(0.01)


def test_an_idle_worker_sleeps(harness, monkeypatch):
    """No polling: after its buffers went back, it wakes for work only."""
    monkeypatch.setattr(worker_module, "IDLE", 0.01)
    waits, wait = [], FairQueue.wait
    monkeypatch.setattr(FairQueue, "wait", lambda *arguments: waits.append(arguments[1:]) or wait(*arguments))
    harness.text(harness.put(max_tokens=1))
    for _ in range(1000):
        if waits and waits[-1] == ():  # the wait for work, behind the one for the buffers' time
            break
        time.sleep(0.01)
    time.sleep(0.2)
    assert waits == [(0.01,), ()]


def test_the_model_goes_with_the_worker():
    models = []

    def loaded():
        model, processor = load("demo")
        models.append(weakref.ref(model))
        return model, processor

    with Harness(loaded) as harness:
        harness.text(harness.put("Hi", RED, max_tokens=2))
    harness.events.clear()
    del harness
    gc.collect()
    assert models[0]() is None


def test_nothing_of_an_answer_stays(harness):
    work = harness.put("Hi", RED, max_tokens=2)
    harness.text(work)
    request = weakref.ref(work.questions[0].request)
    harness.events.clear()
    harness.text(harness.put(max_tokens=2))
    del work
    gc.collect()
    assert request() is None
