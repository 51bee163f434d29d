"""A fault ends the row that it belongs to; what belongs to none, Ctrl-C above all, costs time and nothing else."""

import contextlib
import random

import mlx.core as mx
import pytest
from PIL import Image

from mlx_fastvlm import Engine, PromptCache, batch_generate, generate
from tests.support import small
from tests.support.interrupts import PACKAGE, interrupted_at
from tests.support.models import wide_model

IMAGES = [Image.fromarray(small.odd_image(70, 50)), Image.new("RGB", (40, 60), "white")]
ROOMS = f"{PACKAGE}/generation/", f"{PACKAGE}/cache/"


@pytest.fixture
def wide():
    return wide_model()


def run(engine):
    while engine.step():
        pass


def text(answer):
    """What has come, whether or not the answer ended well."""
    return "".join(response.text for response in answer.ready())


def ask_two(engine, **options):
    return [engine.submit(p, IMAGES[i], max_tokens=12, **options) for i, p in enumerate(("a", "What is this?"))]


def alone(wide, **options):
    return [generate(*wide, p, IMAGES[i], max_tokens=12, **options) for i, p in enumerate(("a", "What is this?"))]


def failing(after, what):
    """A logits processor that does it at its so-and-so-many-th call."""
    calls = []

    def process(tokens, logits):
        calls.append(tokens)
        return what(logits) if len(calls) == after else logits

    return process


def a_key_error(logits):
    raise KeyError("mine")


@pytest.mark.parametrize("after", [1, 4])
@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        (a_key_error, KeyError, "mine"),
        (lambda logits: logits * mx.nan, ValueError, "look at the logits processors"),
        (lambda logits: logits[:, :5], ValueError, "return all of them"),
    ],
    ids=["raises", "NaN", "shape"],
)
def test_a_row_fails_alone(wide, what, kind, words, after):
    engine = Engine(*wide)
    first, *_ = answers = ask_two(engine)
    bad = engine.submit("b", max_tokens=12, logits_processors=[failing(after, what)])
    late = engine.submit("c", max_tokens=12)
    run(engine)
    assert [text(answer) for answer in answers] == alone(wide)
    assert text(late) == generate(*wide, "c", max_tokens=12)
    assert bad.delivered == after - 1
    assert isinstance(bad.error, kind)
    assert bad.ended
    bad.ready()
    for _ in range(2):
        with pytest.raises(kind, match=words):
            next(bad)
    assert first.error is None


def test_a_prompt_that_can_not_be_read_fails_alone(wide, monkeypatch):
    """In the tower, in progress, and in the midst of a call for several prompts."""

    def progress(done, length):
        raise KeyError("mine")

    model, _ = wide
    engine = Engine(*wide)
    bad = [engine.submit("b", max_tokens=12, progress=progress)]
    answers = ask_two(engine)
    encode = type(model).get_image_features

    def fail(self, pixels):
        if mx.abs(pixels - 0.5).max() < 0.01:  # a grey image
            raise RuntimeError("the tower")
        return encode(self, pixels)

    monkeypatch.setattr(type(model), "get_image_features", fail)
    bad.append(engine.submit("b", Image.new("RGB", (9, 9), (127, 127, 127)), max_tokens=12))
    run(engine)
    assert [text(answer) for answer in answers] == alone(wide)
    assert [type(answer.error) for answer in bad] == [KeyError, RuntimeError]

    embed = type(model).embed

    def broken(self, ids, *features):
        if (ids == 120).sum() > 5:  # "x"
            raise MemoryError("the prompt")
        return embed(self, ids, *features)

    monkeypatch.setattr(type(model), "embed", broken)
    first, worse, second = (engine.submit(p, max_tokens=12) for p in ("a", "xxxxxx", "b"))
    run(engine)
    assert isinstance(worse.error, MemoryError)
    monkeypatch.undo()
    assert [text(first), text(second)] == [generate(*wide, p, max_tokens=12) for p in "ab"]


def test_a_batch_raises_its_first_error_and_leaves_the_others(wide):
    calls = failing(9, a_key_error)
    with pytest.raises(KeyError, match="mine"):
        batch_generate(*wide, ["a", "b", "c"], max_tokens=12, logits_processors=[calls])


def test_an_error_of_the_device_leaves_the_engine_usable(wide, monkeypatch):
    """It belongs to no row: the step raises it, and the next goes on from the tokens that there are."""
    engine = Engine(*wide)
    answers = ask_two(engine)
    decoder, calls = type(wide[0].language_model), []
    run_decoder = decoder.__call__

    def fail_once(self, embeddings, *args, **kwargs):
        calls.append(embeddings.shape)
        if len(calls) == 7:
            raise RuntimeError("out of memory")
        return run_decoder(self, embeddings, *args, **kwargs)

    monkeypatch.setattr(decoder, "__call__", fail_once)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(engine)
    run(engine)
    assert [text(answer) for answer in answers] == alone(wide)


def crowd(wide):
    """An engine with rows of every kind, one still waiting, in the midst of their answers."""
    engine = Engine(*wide, max_rows=6, prefill_step_size=60)
    answers = ask_two(engine)
    answers += [
        engine.submit("b", max_tokens=12, max_kv_size=66, temperature=1.0, seed=2),
        engine.submit("c", max_tokens=9, kv_bits=8, repetition_penalty=1.2),
        engine.submit("d", IMAGES[0], max_tokens=9, prompt_cache=PromptCache()),
        engine.submit("e", max_tokens=3),
        engine.submit("f", max_tokens=9),
    ]
    return engine, answers


def finish(engine, answers):
    run(engine)
    assert all(answer.error is None and answer.ended for answer in answers)
    return [text(answer) for answer in answers]


def test_ctrl_c_at_any_line_of_a_step(wide):
    """The engine goes on as if nothing had been, whatever line it was at; and may be told to give up a row before."""
    expected = finish(*crowd(wide))
    chance = random.Random(0)
    for before in (0, 1, 4, 7, 9):
        engine, _ = crowd(wide)
        for _ in range(before):
            engine.step()
        with interrupted_at(0, ROOMS) as lines:
            engine.step()
        for moment in sorted(chance.sample(range(1, len(lines)), 8)):
            engine, answers = crowd(wide)
            for _ in range(before):
                engine.step()
            with contextlib.suppress(KeyboardInterrupt), interrupted_at(moment, ROOMS):
                engine.step()
            if moment % 3 == 0:
                answers[1].close()
            texts = finish(engine, answers)
            if moment % 3 == 0:
                texts[1] = expected[1]
            assert texts == expected, (before, moment)


def test_ctrl_c_while_beginning_again(wide):
    expected = finish(*crowd(wide))
    for moment in range(1, 400, 57):
        engine, answers = crowd(wide)
        for _ in range(6):
            engine.step()
        for line in (50, moment):
            with contextlib.suppress(KeyboardInterrupt), interrupted_at(line, ROOMS):
                engine.step()
        assert finish(engine, answers) == expected, moment


def test_another_answer_takes_over_a_prompt_cache(wide):
    """The row that used it ends, with what it has; the others go on."""
    engine, cache = Engine(*wide), PromptCache()
    answers = ask_two(engine)
    robbed = engine.submit("b", max_tokens=12, prompt_cache=cache)
    while robbed.delivered < 3:
        engine.step()
    generate(*wide, "c", max_tokens=2, prompt_cache=cache)
    run(engine)
    assert [text(answer) for answer in answers] == alone(wide)
    with pytest.raises(ValueError, match="has taken over the prompt cache"):
        list(robbed)
