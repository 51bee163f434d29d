"""A prompt cache that one thread answers with, while another saves it, resets it and asks for its size."""

import sys
import threading

import pytest

from mlx_fastvlm import PromptCache, generate, load_prompt_cache, save_prompt_cache, stream_generate
from tests.support.images import IMAGE
from tests.support.models import wide_model
from tests.support.paths import ROOT
from tests.support.processes import run

# In a process of its own: without the lock it is MLX that ends, by SIGSEGV or for ever waiting.
SAVING = """
import sys, threading
from mlx_fastvlm import PromptCache, generate, load_prompt_cache, save_prompt_cache
from tests.support.images import IMAGE
from tests.support.models import wide_model

model, processor = wide_model()
cache, over = PromptCache(**eval(sys.argv[1])), threading.Event()

def ask(question, cache):
    return generate(model, processor, question, IMAGE, max_tokens=30, prompt_cache=cache)

def answer():
    try:
        said.extend((q, ask(q, cache)) for q in "abc" * 8)
    finally:
        over.set()

said, saves = [], 0
expected = {q: ask(q, PromptCache(**eval(sys.argv[1]))) for q in "abc"}
thread = threading.Thread(target=answer)
thread.start()
while not over.is_set():
    assert cache.nbytes >= 0 and cache.offset >= 0
    try:
        save_prompt_cache(sys.argv[2], cache)
    except ValueError as error:
        assert "is empty" in str(error)
        continue
    saves += 1
    if saves % 4 == 0:
        loaded = load_prompt_cache(sys.argv[2], model)
        question = "abc"[saves % 3]
        assert ask(question, loaded) == expected[question]
thread.join()
assert len(said) == 24
assert all(text == expected[question] for question, text in said)
print("saved" if saves > 3 else saves)
"""


@pytest.mark.parametrize("policy", [{}, {"max_kv_size": 500}], ids=str)
def test_saving_while_another_thread_answers(tmp_path, policy):
    done = run([sys.executable, "-c", SAVING, policy, tmp_path / "cache.safetensors"], cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "saved\n"), done.stderr


def test_a_reset_while_another_thread_answers():
    """The answer ends with an error that says why, or was faster; the next one is right."""
    model, processor = wide_model()
    cache, outcomes = PromptCache(), []

    def answer():
        try:
            outcomes.append(generate(model, processor, "a", IMAGE, max_tokens=60, prompt_cache=cache))
        except ValueError as error:
            outcomes.append("reset() has taken over the prompt cache" in str(error))

    expected = generate(model, processor, "a", IMAGE, max_tokens=60)
    for _ in range(6):
        thread = threading.Thread(target=answer)
        thread.start()
        while not cache.offset and thread.is_alive():
            pass
        cache.reset()
        thread.join()
        assert cache.tokens == [] or outcomes[-1] is not True
        assert generate(model, processor, "a", IMAGE, max_tokens=60, prompt_cache=cache) == expected
        cache.reset()
    assert set(outcomes) <= {True, expected}


def test_a_cache_loaded_in_one_thread_serves_another_whatever_becomes_of_the_file(tmp_path):
    model, processor = wide_model()
    file, cache, outcomes = tmp_path / "cache.safetensors", PromptCache(), []
    expected = generate(model, processor, "a", IMAGE, max_tokens=9, prompt_cache=cache)
    save_prompt_cache(file, cache)
    loaded = load_prompt_cache(file, model)
    file.write_bytes(bytes(file.stat().st_size))

    def answer():
        outcomes.append(list(stream_generate(model, processor, "a", IMAGE, max_tokens=9, prompt_cache=loaded)))

    thread = threading.Thread(target=answer)
    thread.start()
    thread.join()
    assert "".join(response.text for response in outcomes[0]) == expected
    assert outcomes[0][-1].cached_tokens == outcomes[0][-1].prompt_tokens - 1


def test_saving_from_inside_an_answer(tmp_path):
    """From a callback while the prompt is read, there is nothing whole to save; a reset there stays one."""
    model, processor = wide_model()
    cache = PromptCache()

    def save(done, all):
        save_prompt_cache(tmp_path / "cache.safetensors", cache)

    with pytest.raises(ValueError, match="is empty"):
        generate(model, processor, "a", IMAGE, prompt_cache=cache, progress=save)
    assert cache.offset == 0
    generate(model, processor, "a", max_tokens=1, prompt_cache=cache, progress=lambda *_: cache.reset())
    assert (cache.offset, cache.tokens) == (0, [])
