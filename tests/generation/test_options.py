"""Options: one list of them, everywhere the same, and every wrong value refused before anything runs."""

import inspect
import re
import typing
from dataclasses import MISSING, fields

import pytest

from mlx_fastvlm import ChatSession, PromptCache, VisionCache, batch_generate, generate, stream_generate
from mlx_fastvlm.cache.policy import CachePolicy
from mlx_fastvlm.errors import UsageError
from mlx_fastvlm.generation.dataset import caption_dataset
from mlx_fastvlm.generation.options import GenerationOptions, Options, SessionOptions
from tests.support.datasets import job
from tests.support.images import PROMPT
from tests.support.models import wide_model

TAKERS = [generate, stream_generate, batch_generate, caption_dataset, ChatSession]


VIDEO = {"video", "fps", "max_frames"}  # of single questions only


def test_type_checkers_know_the_same_options():
    assert typing.get_type_hints(Options) == typing.get_type_hints(GenerationOptions)
    assert not Options.__required_keys__
    assert {*typing.get_type_hints(SessionOptions), "system", *VIDEO} == {*typing.get_type_hints(Options)}


def stable(value):
    """A test's id without addresses, so that it is the same in every process."""
    return re.sub(r" at 0x\w+", "", repr(value))


@pytest.mark.parametrize("taker", TAKERS, ids=lambda taker: taker.__name__)
def test_help_and_completion_list_the_options(taker):
    parameters = inspect.signature(taker).parameters
    assert all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values())
    refused = VIDEO if taker in (ChatSession, caption_dataset) else set()
    assert refused.isdisjoint(parameters)
    for field in fields(GenerationOptions):
        assert field.name in refused or parameters[field.name].default == field.default
        assert field.default is not MISSING


WRONG = {
    "video": [5, 1.0, {"path": "film.mp4"}],
    "fps": ["1", None, True, 0, -1, float("nan"), float("inf")],
    "max_frames": [1.0, None, 0, True],
    "logit_bias": [{"0": 1}, [(0, 1)], {True: 1}, {0: "a"}, {0: None}, {0: True}, {0: 1e39}, {0: 1e-42}, {1.5: 1}, "0"],
    "stop": [5, ["a", 5], b"a", [""], iter(["a"]), {"a": 1}],
    "vision_cache": [True, "cache", {}],
    "prompt_cache": [True, "cache.safetensors", []],
    "progress": [True, "print", 0],
    "logits_processors": [print, [1], "x", {print}],
    "logprobs": [1, "yes", None],
    "temperature": ["1", None, True, 1e-42, 1e39, 10**400, float("nan"), float("inf"), [1]],
    "top_p": ["1", None, True, 1e-300, 0],
    "min_p": ["0", None, False, 1e-300],
    "top_k": [1.0, "1", None, True],
    "repetition_penalty": ["1", True, 1e-45, 1e39, 10**400],
    "repetition_context_size": [1.0, None],
    "presence_penalty": ["1", None, True, 2.1, float("nan"), 10**400],
    "frequency_penalty": ["1", None, True, -2.1, float("inf")],
    "min_tokens": [1.0, None, -1, 10**6],
    "top_logprobs": [1.0, "5", True, None, -1, 21],
    "max_tokens": [1.0, "5", None, True],
    "seed": [1.0, "1", -1, 2**63],
    "system": [5, ["Be brief."], b"x"],
    "image_size": ["64", 64.0, True],
    "frames": [None, 1.0, "2"],
    "vision_batch_size": ["1", 1.0],
    "max_kv_size": [100.5, "100", True, 0, -1],
    "kv_bits": ["8", 8.0, True, 2],
    "kv_group_size": [None, 64.0, "64"],
    "prefill_step_size": [None, 1.0],
    "json_schema": [5, 1.0, "", "{", ["a"], {"a": {1}}, {"minimum": float("nan")}],
    "regex": [5, "", b"a", ["a"]],
    "choices": [5, "ab", [], [""], ["a", 5], {"a": 1}],
    "grammar": [5, "", " ", b"start: A", ["start: A"]],
}


@pytest.mark.parametrize(("option", "value"), [(o, v) for o, values in WRONG.items() for v in values], ids=stable)
def test_wrong_values_are_usage_errors_before_anything_runs(option, value):
    model, processor = wide_model()
    with pytest.raises(UsageError, match=option):
        GenerationOptions(**{option: value})
    with pytest.raises(UsageError, match=option):
        stream_generate(model, processor, PROMPT, **{option: value})


def test_every_option_has_a_wrong_value():
    assert set(WRONG) == {field.name for field in fields(GenerationOptions)}


@pytest.mark.parametrize("size", [None, 1.0, "2", True, 0])
def test_wrong_batch_sizes(size, tmp_path):
    with pytest.raises(UsageError, match="batch_size"):
        batch_generate(*wide_model(), ["a"], batch_size=size)
    with pytest.raises(UsageError, match="batch_size"):
        job(tmp_path, tmp_path / "out.jsonl", batch_size=size)
    with pytest.raises(UsageError, match="threads"):
        job(tmp_path, tmp_path / "out.jsonl", threads=size)


@pytest.mark.parametrize("policy", [{"max_kv_size": 100.5}, {"kv_bits": 5}, {"kv_group_size": "64"}], ids=str)
def test_policies_are_checked_wherever_they_are_made(policy):
    for make in (PromptCache, CachePolicy, GenerationOptions):
        with pytest.raises(UsageError, match=next(iter(policy))):
            make(**policy)


RIGHT = [
    {"temperature": 10**19, "seed": 1},
    {"temperature": 1e-30, "seed": 1},
    {"temperature": 1, "top_p": 2**-126, "seed": 1},
    {"temperature": 1, "top_k": 10**30, "seed": 1},
    {"repetition_penalty": 1e30, "repetition_context_size": 10**30},
    {"logit_bias": {0: -float("inf"), 1: 10**19, 2: -3}},
    {"logit_bias": {}, "stop": [], "logits_processors": []},
    {"stop": ("a", "b"), "vision_cache": VisionCache(), "prompt_cache": PromptCache()},
    {"prefill_step_size": 10**30, "vision_batch_size": 10**30, "frames": 10**30, "max_kv_size": 10**30},
]


@pytest.mark.parametrize("options", RIGHT, ids=stable)
def test_extreme_values_that_are_right(options):
    model, processor = wide_model()
    assert isinstance(generate(model, processor, PROMPT, max_tokens=3, **options), str)


def test_a_temperature_next_to_nothing_is_greedy():
    model, processor = wide_model()
    greedy = generate(model, processor, PROMPT, max_tokens=8)
    for options in ({"temperature": 1e-30}, {"temperature": 5, "top_p": 2**-126}, {"temperature": 1e30, "top_k": 1}):
        assert generate(model, processor, PROMPT, max_tokens=8, seed=1, **options) == greedy
