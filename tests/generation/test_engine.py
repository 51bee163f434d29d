"""The engine's loop: what joins when, what a step does, and that nothing of an ended answer stays."""

import gc
import weakref

import mlx.core as mx
import pytest
from PIL import Image

from mlx_fastvlm import Engine, PrefixCache, PromptCache, VisionCache, generate
from mlx_fastvlm.errors import UsageError
from tests.support import small
from tests.support.models import wide_model

IMAGES = [Image.fromarray(small.odd_image(70, 50)), Image.new("RGB", (40, 60), "white"), Image.new("RGB", (9, 9))]


@pytest.fixture
def wide():
    return wide_model()


@pytest.fixture
def decoder_calls(wide, monkeypatch):
    """(rows, length) of each of the decoder's calls."""
    calls = []
    decoder = type(wide[0].language_model)
    run = decoder.__call__

    def watch(self, embeddings, *args, **kwargs):
        calls.append(embeddings.shape[:2])
        return run(self, embeddings, *args, **kwargs)

    monkeypatch.setattr(decoder, "__call__", watch)
    return calls


def text(answer):
    return "".join(response.text for response in answer)


def test_answers_in_any_order_and_in_turns(wide):
    engine = Engine(*wide)
    prompts = ["a", "What is this?", "b"]
    first, second, third = (engine.submit(prompt, max_tokens=15) for prompt in prompts)
    texts = {2: text(third), 0: text(first), 1: text(second)}
    assert [texts[i] for i in range(3)] == [generate(*wide, prompt, max_tokens=15) for prompt in prompts]
    assert engine.step() is False
    assert text(engine.submit("a", max_tokens=15)) == texts[0]


def test_nothing_runs_before_a_step(wide, decoder_calls):
    engine = Engine(*wide)
    answer = engine.submit("a", max_tokens=2)
    assert decoder_calls == []
    assert (answer.delivered, answer.ended, answer.usage.generation_tokens) == (0, False, 0)
    engine.step()
    assert answer.delivered == 1
    with pytest.raises(UsageError, match="top_p"):
        engine.submit("a", top_p=2)
    with pytest.raises(FileNotFoundError):
        engine.submit("a", "nowhere.png")
    assert len(list(answer)) == 2
    assert answer.usage.generation_tokens == 2
    assert answer.usage.prompt_tokens > 10
    assert answer.finish_reason == "length"


def test_rows_of_one_kind_decode_in_one_call(wide, decoder_calls):
    engine = Engine(*wide)
    for options in ({}, {"max_kv_size": 120}, {"temperature": 1.0}, {"kv_bits": 8}, {"kv_bits": 8, "max_kv_size": 99}):
        engine.submit("a", max_tokens=6, **options)
    engine.submit("a", max_tokens=6, prompt_cache=PromptCache())
    while any(length > 1 for _, length in decoder_calls) or not decoder_calls:
        decoder_calls.clear()
        engine.step()
    assert sorted(decoder_calls) == [(1, 1), (2, 1), (3, 1)]


def test_one_row_alone_has_no_batch(wide, decoder_calls, monkeypatch):
    monkeypatch.setattr("mlx_fastvlm.generation.engine.Crowd.join", lambda *_: pytest.fail("it joined a batch"))
    engine = Engine(*wide)
    for prompt in "ab":
        assert text(engine.submit(prompt, max_tokens=4)) == generate(*wide, prompt, max_tokens=4)


def test_a_running_answer_flows_while_a_long_prompt_is_read(wide, decoder_calls):
    """A token each step, and at most a piece of the prompt beside it."""
    engine = Engine(*wide, prefill_step_size=20)
    running = engine.submit("a", max_tokens=200)
    while not running.delivered:
        engine.step()
    late = engine.submit("x" * 300, max_tokens=3)
    steps = 0
    while not late.delivered:
        before = running.delivered
        decoder_calls.clear()
        engine.step()
        steps += 1
        assert running.delivered == before + 1
        assert sum(rows * length for rows, length in decoder_calls if length > 1) <= 20
    assert steps == -(-late.usage.prompt_tokens // 20)


def test_short_prompts_are_read_together(wide, decoder_calls):
    engine = Engine(*wide)
    answers = [engine.submit(prompt, max_tokens=2) for prompt in ("a", "bcd", "x" * 400, "efgh")]
    engine.step()
    assert [rows for rows, length in decoder_calls if length > 1] == [3, 1]
    assert [text(answer) for answer in answers] == [
        generate(*wide, p, max_tokens=2) for p in ("a", "bcd", "x" * 400, "efgh")
    ]


@pytest.fixture
def tower_calls(wide, monkeypatch):
    """Shapes of what went through the tower."""
    calls = []
    encode = type(wide[0]).get_image_features
    monkeypatch.setattr(type(wide[0]), "get_image_features", lambda self, x: calls.append(x.shape) or encode(self, x))
    return calls


def test_images_of_several_rows_go_in_groups_and_each_once(wide, tower_calls):
    engine = Engine(*wide, vision_cache=VisionCache())
    shown = [[0], [1], [0, 1], [2], [0]]
    answers = [engine.submit("a", [IMAGES[i] for i in own], max_tokens=3, vision_batch_size=2) for own in shown]
    answers.append(engine.submit("a", IMAGES[0], max_tokens=3, image_size=64))
    texts = [text(answer) for answer in answers]
    assert [shape[0] for shape in tower_calls] == [2, 1, 1]
    assert texts[:-1] == [generate(*wide, "a", [IMAGES[i] for i in own], max_tokens=3) for own in shown]


def test_small_images_go_together_also_those_of_waiting_rows(wide, tower_calls):
    """As many as have the pixels of one of the checkpoint's own size, 128."""
    engine = Engine(*wide, max_rows=2, ahead=10)
    assert engine.room == 4
    images = [Image.new("RGB", (9, 9), (i, i, i)) for i in range(5)]
    answers = [engine.submit("a", image, max_tokens=2 + i, image_size=64) for i, image in enumerate(images)]
    engine.cancel(answers.pop(3))
    texts = [text(answer) for answer in answers]
    assert [shape[0] for shape in tower_calls] == [4]
    assert texts == [generate(*wide, "a", images[i], max_tokens=2 + i, image_size=64) for i in (0, 1, 2, 4)]


def test_no_image_goes_early_where_a_cache_may_know_it(wide, tower_calls):
    for options, own in (({"prefix_cache": PrefixCache()}, {}), ({}, {"vision_cache": VisionCache()})):
        engine = Engine(*wide, max_rows=1, ahead=1, **options)
        answers = [engine.submit("a", IMAGES[i], max_tokens=3, image_size=64, **own) for i in range(2)]
        assert [text(answer) for answer in answers]
    assert [shape[0] for shape in tower_calls] == [1, 1, 1, 1]


def test_cancelled_within_a_step_and_idempotent(wide):
    engine = Engine(*wide, max_rows=2)
    running, gone, waiting, never = (engine.submit(prompt, max_tokens=30) for prompt in "abcd")
    for _ in range(3):
        engine.step()
    for answer in (gone, never, gone):
        engine.cancel(answer)
        answer.close()
    assert list(never) == list(gone) == []
    assert gone.ended
    assert gone.error is None
    assert gone.finish_reason is None
    assert (text(running), text(waiting)) == tuple(generate(*wide, p, max_tokens=30) for p in "ac")


def test_a_prompt_cache_serves_one_row_after_the_other(wide):
    engine, cache = Engine(*wide), PromptCache()
    answers = [engine.submit("What is this?", IMAGES[i], max_tokens=5, prompt_cache=cache) for i in (0, 0, 1)]
    other = engine.submit("b", max_tokens=5)
    assert text(other) == generate(*wide, "b", max_tokens=5)
    assert [text(a) for a in answers] == [generate(*wide, "What is this?", IMAGES[i], max_tokens=5) for i in (0, 0, 1)]
    assert answers[1].usage.cached_tokens == answers[1].usage.prompt_tokens - 1
    assert answers[0].usage.cached_tokens == 0


def test_rows_wait_where_memory_is_short(wide, monkeypatch):
    """One is tried in any case; a further one only where its keys and values have room."""
    engine = Engine(*wide)
    monkeypatch.setattr("mlx_fastvlm.generation.engine.free_memory", lambda: 1000)
    first, second = (engine.submit(prompt, max_tokens=5) for prompt in "ab")
    texts = [text(first)]
    assert second.delivered == 0
    texts.append(text(second))
    monkeypatch.setattr("mlx_fastvlm.generation.engine.free_memory", lambda: 10**9)
    third, fourth = (engine.submit(prompt, max_tokens=5) for prompt in "ab")
    assert [text(third), *texts[1:]] == texts
    assert fourth.delivered > 0


@pytest.fixture
def no_collector():
    """Only what nothing refers to is freed: Python looks for circles when it likes, and not by the arrays' size."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("options", [{}, {"max_kv_size": 400}, {"kv_bits": 8}, {"temperature": 1.0, "logprobs": True}])
def test_nothing_of_an_ended_answer_stays(wide, no_collector, options):
    engine = Engine(*wide, max_rows=3)
    gone = []
    for i in range(30):
        answers = [engine.submit(prompt, IMAGES[i % 3], max_tokens=6, **options) for prompt in "abc"]
        rows = [*engine._waiting]
        gone += [weakref.ref(x) for x in (*rows, *answers, *(row.cache for row in rows))]
        [text(answer) for answer in answers]
        del rows, answers
        if i == 4:
            held = mx.get_active_memory()
    assert [ref for ref in gone if ref() is not None] == []
    assert (engine._rows, engine._crowds, engine._reader._features) == ([], {}, {})
    assert mx.get_active_memory() - held < 10**4


@pytest.mark.parametrize("options", [{}, {"max_kv_size": 400}, {"kv_bits": 8}, {"prefill_step_size": 7}])
def test_several_answers_read_their_prompt_once(wide, decoder_calls, monkeypatch, options):
    seen = []
    encode = type(wide[0]).get_image_features
    monkeypatch.setattr(type(wide[0]), "get_image_features", lambda self, x: seen.append(x.shape) or encode(self, x))
    options = {"temperature": 1.5, "seed": 7, "max_tokens": 6, **options}
    engine = Engine(*wide)
    answers = engine.submit_n(3, "What is this?", IMAGES[0], **options)
    texts = [text(answer) for answer in answers]
    assert len(seen) == 1
    assert sum(length for _, length in decoder_calls if length > 1) == answers[0].usage.prompt_tokens
    alone = [text(Engine(*wide).submit("What is this?", IMAGES[0], **options | {"seed": 7 + i})) for i in range(3)]
    assert texts == alone
    assert len(set(texts)) == 3
    assert [answer.usage.cached_tokens for answer in answers] == [0] + [answers[0].usage.prompt_tokens - 1] * 2


def test_several_answers_without_a_seed_differ(wide):
    answers = Engine(*wide).submit_n(4, "a", temperature=1.5, max_tokens=8)
    assert len({text(answer) for answer in answers}) == 4


def test_another_reads_the_prompt_where_the_first_gives_up(wide, decoder_calls):
    engine = Engine(*wide, prefill_step_size=5)
    first, *others = engine.submit_n(3, "What is this?", max_tokens=4)
    engine.step()
    first.close()
    expected = generate(*wide, "What is this?", max_tokens=4)
    decoder_calls.clear()
    assert [text(answer) for answer in others] == [expected] * 2
    assert sum(length for _, length in decoder_calls if length > 1) == others[0].usage.prompt_tokens


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [
        (0, {}, "n must be at least 1"),
        (1.5, {}, "n must be a whole number"),
        (2, {"prompt_cache": PromptCache()}, "a prompt_cache holds one answer"),
        (2, {"seed": 2**63 - 1}, "seed must lie between"),
    ],
)
def test_impossible_numbers_of_answers(wide, n, options, message):
    engine = Engine(*wide)
    with pytest.raises(UsageError, match=message):
        engine.submit_n(n, "a", **options)
    assert engine.step() is False


def test_an_engine_of_no_rows_is_refused(wide):
    for name in ("max_rows", "prefill_step_size"):
        with pytest.raises(UsageError, match=name):
            Engine(*wide, **{name: 0})
