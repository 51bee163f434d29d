"""The prefix cache: what prompts share is read once, and never taken for anything else."""

import pytest
from PIL import Image

from mlx_fastvlm import Engine, PrefixCache, generate
from mlx_fastvlm.cache import prefix
from tests.support.images import IMAGE
from tests.support.models import wide_model

OTHER = Image.new("RGB", (40, 60), "white")
SYSTEM = "You are brief and to the point, and you never guess."


@pytest.fixture(scope="module")
def wide():
    return wide_model()


def ask(engine, prompt, image=None, **options):
    answer = engine.submit(prompt, image, max_tokens=8, **options)
    return "".join(response.text for response in answer), answer.usage


def test_what_prompts_share_is_read_once(wide):
    cache = PrefixCache()
    engine = Engine(*wide, prefix_cache=cache)
    for prompt, image, least in (
        ("What is this?", IMAGE, 0),
        ("What is this?", IMAGE, 90),
        ("Why?", IMAGE, 60),
        ("What is this?", OTHER, 50),
        ("What is this?", None, 50),
    ):
        text, usage = ask(engine, prompt, image, system=SYSTEM)
        assert text == generate(*wide, prompt, image, max_tokens=8, system=SYSTEM)
        assert usage.cached_tokens >= least
        assert usage.cached_tokens < usage.prompt_tokens
    assert (cache.hits, cache.misses) == (4, 1)
    assert Engine(*wide, prefix_cache=cache).submit("What is this?", IMAGE, system=SYSTEM)


def test_a_known_image_goes_through_the_tower_no_more(wide, monkeypatch):
    calls = []
    encode = type(wide[0]).get_image_features
    monkeypatch.setattr(type(wide[0]), "get_image_features", lambda self, x: calls.append(len(x)) or encode(self, x))
    engine = Engine(*wide, prefix_cache=PrefixCache())
    for prompt in ("a", "b", "c"):
        ask(engine, prompt, IMAGE)
    assert calls == [1]
    ask(engine, "a", [IMAGE, OTHER])
    assert sum(calls) <= 3


def test_turns_of_a_conversation_that_come_one_by_one(wide):
    engine = Engine(*wide, prefix_cache=PrefixCache())
    messages = [{"role": "user", "content": "What is this?"}]
    _, first = ask(engine, messages, IMAGE)
    messages += [{"role": "assistant", "content": "A photo."}, {"role": "user", "content": "Sure?"}]
    text, second = ask(engine, messages, IMAGE)
    assert second.cached_tokens >= first.prompt_tokens
    assert text == generate(*wide, messages, IMAGE, max_tokens=8)
    assert len(engine._reader._prefix_cache) == 1  # the longer prompt has taken the shorter one's place


def test_other_policies_are_neither_kept_nor_served(wide):
    cache = PrefixCache()
    engine = Engine(*wide, prefix_cache=cache)
    for options in ({"max_kv_size": 150}, {"kv_bits": 8}):
        ask(engine, "a", IMAGE, **options)
    assert len(cache) == cache.hits == cache.misses == 0
    ask(engine, "a", IMAGE)
    assert ask(engine, "a", IMAGE, kv_bits=8)[1].cached_tokens == 0


def test_it_is_bounded_and_forgets_the_longest_unused(wide):
    cache = PrefixCache()
    engine = Engine(*wide, prefix_cache=cache)
    ask(engine, "a", system="xyz")
    one = cache.nbytes
    cache.max_bytes = int(2.5 * one)
    for system in ("b", "a" * 3, "c", "a" * 3, "d"):  # these begin apart from each other
        ask(engine, "a", system=system)
    assert len(cache) == 2
    assert cache.nbytes <= cache.max_bytes
    cache.max_bytes = one // 2
    ask(engine, "z" * 40)
    assert len(cache) == 0
    with pytest.raises(ValueError, match="max_bytes"):
        PrefixCache(0)


def test_its_prompts_are_counted_too(wide, monkeypatch):
    monkeypatch.setattr(prefix, "MAX_PROMPTS", 3)
    cache = PrefixCache()
    engine = Engine(*wide, prefix_cache=cache)
    for system in "abcdefg":
        ask(engine, "a", system=system)
    assert len(cache) == 3
    assert ask(engine, "a", system="g")[1].cached_tokens > ask(engine, "a", system="a")[1].cached_tokens


def test_it_holds_no_model_that_it_has_nothing_of(wide, untied_model):
    cache = PrefixCache()
    ask(Engine(*wide, prefix_cache=cache), "a")
    cache.max_bytes = cache.nbytes
    ask(Engine(*untied_model, prefix_cache=cache), "a")
    assert len(cache) == len(cache._models) == 1


def test_another_model_finds_nothing(wide, untied_model):
    cache = PrefixCache()
    ask(Engine(*wide, prefix_cache=cache), "a")
    assert ask(Engine(*untied_model, prefix_cache=cache), "a")[1].cached_tokens == 0
    assert len(cache) == 2
