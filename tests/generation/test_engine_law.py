"""The engine's law: rows at once equal rows alone, whatever joins, leaves or is cancelled meanwhile.

Each schedule is a random crowd: what is asked, when, with which options, and when it is given up. 300 of them by
default; ``FASTVLM_SCHEDULES=5000`` runs more.
"""

import dataclasses
import functools
import os

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_fastvlm import Engine, PrefixCache, PromptCache, VisionCache, stream_generate
from mlx_fastvlm.models.forms import specialize
from tests.support import small
from tests.support.models import wide_model

SCHEDULES = int(os.environ.get("FASTVLM_SCHEDULES", 300))
IMAGES = [Image.fromarray(small.odd_image(70, 50)), Image.new("RGB", (40, 60), "white")]
PROMPTS = ["a", "What is this?", "Why is that so, and since when is it like that, do you know?"]
SHOWN = [(), (0,), (1, 0)]


def only_even(tokens, logits):
    return mx.where(mx.arange(logits.shape[-1]) % 2 == tokens.size % 2, logits, -mx.inf)


OPTIONS = [
    {},
    {"logprobs": True},
    {"temperature": 1.5, "seed": 3},
    {"temperature": 1.5, "seed": 4, "logprobs": True},
    {"temperature": 0.8, "seed": 5, "top_p": 0.9, "top_k": 20, "min_p": 0.01},
    {"repetition_penalty": 1.5, "logprobs": True},
    {"presence_penalty": 1.5, "frequency_penalty": 0.5, "temperature": 1.0, "seed": 1},
    {"logit_bias": {65: 4.0}, "stop": ["A", "th"]},
    {"logits_processors": [only_even], "top_logprobs": 3},
    {"min_tokens": 6},
    {"prefill_step_size": 7, "logprobs": True},
    {"image_size": 64},
    {"image_size": 64, "vision_batch_size": 2},
    {"bounded": 3, "logprobs": True},
    {"bounded": 1, "temperature": 1.5, "seed": 3},
    {"bounded": 9},
    {"kv_bits": 8, "logprobs": True},
    {"kv_bits": 4, "kv_group_size": 32},
    {"bounded": 2, "kv_bits": 8},
    {"prompt_cache": True, "logprobs": True},
    {"prompt_cache": True, "bounded": 4},
    {"regex": "[A-Za-z ]{2,9}", "logprobs": True},
    {"regex": "(ab|[a-z])*[!?]", "temperature": 1.5, "seed": 6},
    {"choices": ["Hello", "Hello, you", "No"], "top_logprobs": 4},
    {"choices": ["b", "bb", "bbb"], "bounded": 2, "repetition_penalty": 1.3},
    {"regex": "[a-z]+", "kv_bits": 8, "stop": ["e"], "temperature": 1.0, "seed": 7},
]
JOB = st.fixed_dictionaries(
    {
        "prompt": st.integers(0, len(PROMPTS) - 1),
        "shown": st.sampled_from(SHOWN),
        "options": st.integers(0, len(OPTIONS) - 1),
        "max_tokens": st.sampled_from([1, 2, 5, 12]),
        "n": st.sampled_from([1, 1, 1, 2, 4]),
        "arrives": st.integers(0, 12),
        "given_up_after": st.none() | st.integers(0, 6),
    }
)


@functools.cache
def rambling():
    """A model whose answers end by themselves now and then."""
    model, processor = wide_model()
    return model, dataclasses.replace(processor, eos_token_ids=frozenset(range(0, 320, 23)))


@functools.cache
def length(prompt, shown, size):
    _, processor = rambling()
    marks = "<image>\n" * len(shown)
    return len(processor.encode_chat([{"role": "user", "content": marks + PROMPTS[prompt]}], image_size=size))


def arguments(job):
    """What a job asks; caches are new each time."""
    options = {**OPTIONS[job["options"]], "max_tokens": job["max_tokens"]}
    options["min_tokens"] = min(options.get("min_tokens", 0), job["max_tokens"])
    window = options.pop("bounded", None)
    if window is not None:
        options["max_kv_size"] = length(job["prompt"], job["shown"], options.get("image_size")) + window
    if options.pop("prompt_cache", False):
        options["prompt_cache"] = PromptCache(options.pop("max_kv_size", None))
    return (PROMPTS[job["prompt"]], [IMAGES[i] for i in job["shown"]]), options


@functools.cache
def alone(index, *job):
    """The answer of this index among a job's."""
    asked, options = arguments(dict(job))
    if "seed" in options:
        options["seed"] += index
    return list(stream_generate(*rambling(), *asked, **options))


def submit(engine, job):
    """The answers to a job."""
    asked, options = arguments(job)
    if job["n"] == 1 or "prompt_cache" in options:
        return [engine.submit(*asked, **options)]
    return engine.submit_n(job["n"], *asked, **options)


def together(schedule, **engine):
    """Each job with its answers' responses, in one engine; the first answer is the one that may be given up."""
    engine = Engine(*rambling(), **engine)
    answers, responses = {}, {}
    waiting = list(enumerate(schedule))
    for moment in range(1000):
        for number, job in [each for each in waiting if each[1]["arrives"] == moment]:
            waiting.remove((number, job))
            for index, answer in enumerate(submit(engine, job)):
                answers[number, index], responses[number, index] = answer, []
        busy = engine.step()
        for (number, index), answer in answers.items():
            responses[number, index] += answer.ready()
            limit = schedule[number]["given_up_after"]
            if index == 0 and limit is not None and len(responses[number, index]) >= limit:
                answer.close()
        if not busy and not waiting:
            break
    assert all(answer.error is None and answer.ended for answer in answers.values())
    return responses


def check(schedule, **engine):
    for (number, index), responses in together(schedule, **engine).items():
        job = schedule[number]
        key = {name: value for name, value in job.items() if name not in ("arrives", "given_up_after", "n")}
        expected = alone(index, *key.items())
        if index == 0 and job["given_up_after"] is not None:
            assert len(responses) >= min(job["given_up_after"], len(expected))
            expected = expected[: len(responses)]
        assert len(responses) == len(expected), job
        for ours, theirs in zip(responses, expected):
            assert (ours.token, ours.text, ours.finish_reason) == (theirs.token, theirs.text, theirs.finish_reason), job
            assert (ours.prompt_tokens, ours.generation_tokens) == (theirs.prompt_tokens, theirs.generation_tokens)
            assert (ours.logprob is None) == (theirs.logprob is None)
            assert ours.logprob is None or abs(ours.logprob - theirs.logprob) < 1e-3
            found = ([a.token for a in r.top_logprobs or []] for r in (ours, theirs))
            assert next(found) == next(found)


SCHEDULE = st.lists(JOB, min_size=1, max_size=7)
ENGINE = {
    "max_rows": st.integers(1, 6),
    "prefill_step_size": st.sampled_from([20, 100, 2048]),
    "ahead": st.sampled_from([0, 3]),
}
quiet = {"suppress_health_check": list(HealthCheck)}


@settings(max_examples=SCHEDULES, **quiet)
@given(schedule=SCHEDULE, **ENGINE)
def test_rows_at_once_equal_rows_alone(schedule, **engine):
    check(schedule, **engine)


@settings(max_examples=max(1, SCHEDULES // 10), **quiet)
@given(schedule=SCHEDULE, **ENGINE)
def test_also_with_caches_that_outlive_answers(schedule, **engine):
    """They are small, so that they forget all the time."""
    caches = {"vision_cache": VisionCache(max_bytes=3000), "prefix_cache": PrefixCache(max_bytes=500_000)}
    check(schedule, **engine, **caches)


@pytest.fixture(scope="module")
def on_a_gpu():
    """The model with the forms that a GPU's has."""
    model, _ = wide_model()
    specialize(model, mx.gpu)
    alone.cache_clear()
    yield
    specialize(model, mx.cpu)
    alone.cache_clear()


@settings(max_examples=max(1, SCHEDULES // 10), **quiet)
@given(schedule=SCHEDULE, **ENGINE)
def test_also_on_the_path_of_a_gpu(on_a_gpu, schedule, **engine):
    check(schedule, **engine)
