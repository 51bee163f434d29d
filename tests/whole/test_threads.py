"""One model, several threads: right answers, or an error that says what to do."""

import sys
import threading

import pytest
from PIL import Image

from mlx_fastvlm import ChatSession, PromptCache, VisionCache, batch_generate, generate, stream_generate
from tests.support import small
from tests.support.models import wide_model
from tests.support.processes import run

IMAGES = [Image.fromarray(small.odd_image(60 + 5 * i, 50)) for i in range(4)]


@pytest.fixture
def wide():
    return wide_model()


def in_threads(*functions):
    """What each returns, or the error it raised, from threads that run at the same time."""
    results = [None] * len(functions)
    ready = threading.Barrier(len(functions))

    def run(i):
        ready.wait()
        try:
            results[i] = functions[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
        assert not thread.is_alive()
    return results


def asking(model, processor, **options):
    """A function for each image that gives the answer to a question about it, each to another question."""
    options = {"max_tokens": 12, **options}
    return [lambda q=q, p=p: generate(model, processor, q, p, **options) for q, p in zip("abcd", IMAGES)]


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.0, "seed": 4, "top_p": 0.9, "repetition_penalty": 1.1}, {"max_kv_size": 100, "kv_bits": 8}],
    ids=str,
)
def test_answers_from_threads_are_the_right_ones(wide, options):
    ask = asking(*wide, **options)
    expected = [function() for function in ask]
    assert len(set(expected)) > 1
    assert in_threads(*ask) == expected


def test_batches_from_threads(wide):
    batch = [lambda n=n: batch_generate(*wide, ["a", "bc", "d"][:n], IMAGES[:n], max_tokens=9) for n in (1, 2, 3)]
    assert in_threads(*batch) == [function() for function in batch]


def test_a_shared_vision_cache(wide):
    plain = [function() for function in asking(*wide)]
    one_fits = VisionCache(max_bytes=1)
    for cache in (VisionCache(), one_fits):
        ask = asking(*wide, vision_cache=cache)
        assert in_threads(*ask) == plain


def test_a_conversation_that_changes_threads(wide):
    here, there = (ChatSession(*wide, max_tokens=15) for _ in range(2))
    for question, image in (("a", IMAGES[0]), ("b", None), ("c", IMAGES[1])):
        assert in_threads(lambda q=question, p=image: there.ask(q, p)) == [here.ask(question, image)]


def test_a_shared_prompt_cache_answers_rightly_or_not_at_all(wide):
    expected = [function() for function in asking(*wide)]
    for _ in range(3):
        for answer, right in zip(in_threads(*asking(*wide, prompt_cache=PromptCache())), expected):
            assert answer == right or "has taken over the prompt cache" in str(answer)


def test_two_answers_in_turns_on_one_prompt_cache(wide):
    """The later one is right; the earlier one says that it can't go on, instead of saying nonsense."""
    cache = PromptCache()
    first = stream_generate(*wide, "a", IMAGES[0], prompt_cache=cache, max_tokens=12)
    next(first)
    second = stream_generate(*wide, "b", IMAGES[1], prompt_cache=cache, max_tokens=12)
    text = next(second).text
    with pytest.raises(ValueError, match="give each answer that runs at the same time its own"):
        list(first)
    text += "".join(response.text for response in second)
    assert text == generate(*wide, "b", IMAGES[1], max_tokens=12)


LEFT_BEHIND = """
import sys, threading
from mlx_fastvlm import generate, load
model, processor = load(sys.argv[1])
ask = dict(target=generate, args=(model, processor, "Hi", sys.argv[2]), kwargs={"max_tokens": 9})
threads = [threading.Thread(**ask) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("done")
"""


def test_threads_leave_nothing_that_breaks_the_end_of_the_process(checkpoint, tmp_path):
    """MLX's own threads must be gone before it is (mlx.core.clear_streams), or the process is aborted."""
    IMAGES[0].save(tmp_path / "image.png")
    command = [sys.executable, "-c", LEFT_BEHIND, checkpoint("apple"), tmp_path / "image.png"]
    done = run(command)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
