"""Every field that openai's client can send is decided on, and each decision is what happens."""

import typing

import pytest

from mlx_fastvlm.server.dialect import chat, completions, decisions, responses
from mlx_fastvlm.server.dialect.table import Honoured, Ignored, Refused
from tests.server.dialect.bodies import DIALECTS, PLAIN, SERVED, data_uri, image_part, name_of, refusal, says


def keys(params):
    """The fields of openai's TypedDicts, streaming and not."""
    return {key for part in typing.get_args(params) for key in typing.get_type_hints(part)}


PARAMS = {
    chat: "openai.types.chat.completion_create_params.CompletionCreateParams",
    completions: "openai.types.completion_create_params.CompletionCreateParams",
    responses: "openai.types.responses.response_create_params.ResponseCreateParams",
}


@pytest.mark.parametrize("dialect", PARAMS, ids=name_of)
def test_openai_has_no_field_that_nobody_decided_on(dialect):
    module, _, name = PARAMS[dialect].rpartition(".")
    params = getattr(pytest.importorskip(module, reason="needs openai, of the extra test"), name)
    assert keys(params)
    assert keys(params) <= set(dialect.FIELDS)


def decided(kind):
    """(dialect, field, decision) of all tables."""
    return [
        pytest.param(dialect, name, decision, id=f"{name_of(dialect)}-{name}")
        for dialect in DIALECTS
        for name, decision in dialect.FIELDS.items()
        if isinstance(decision, kind)
    ]


VALUES = [True, 3, 0.5, "something", ["something"], {"something": {"else": 1}}, "low", "high", "required"]


@pytest.mark.parametrize(("dialect", "name", "decision"), decided(Refused))
def test_refused_by_name(dialect, name, decision):
    for value in VALUES:
        error = refusal(dialect.read, {**PLAIN[dialect], name: value}, param=name)
        assert (error.status, error.kind) == (400, "invalid_request_error")
        assert error.message == f"{name} is not served here: {decision.note}"
    plain = dialect.read(PLAIN[dialect], SERVED)
    for value in (None, *decision.harmless):
        assert dialect.read({**PLAIN[dialect], name: value}, SERVED) == plain


def test_what_is_harmless_is_told_by_type_too():
    assert refusal(chat.read, says(tools=[{}]), param="tools")
    assert refusal(chat.read, says(use_beam_search=0), param="use_beam_search")  # not false, so what is it?
    assert refusal(completions.read, {**PLAIN[completions], "best_of": True}, param="best_of")


@pytest.mark.parametrize(("dialect", "name", "decision"), decided(Ignored))
def test_ignored(dialect, name, decision):
    plain = dialect.read(PLAIN[dialect], SERVED)
    for value in VALUES:
        assert dialect.read({**PLAIN[dialect], name: value}, SERVED) == plain, decision


@pytest.mark.parametrize("dialect", DIALECTS, ids=name_of)
def test_unknown_fields_are_ignored(dialect):
    extra = {"never_heard_of": {"a": 1}, "": [], "MESSAGES": 3, "Model": "x"}
    assert dialect.read({**extra, **PLAIN[dialect]}, SERVED) == dialect.read(PLAIN[dialect], SERVED)


# A value of each honoured field, and what it changes in the options, or elsewhere in the ask.
SAMPLING = {
    "temperature": (0.7, {"temperature": 0.7}),
    "top_p": (0.9, {"top_p": 0.9}),
    "seed": (0, {"seed": 0}),
    "stop": ("x", {"stop": ["x"]}),
    "logit_bias": ({"3": -100, "12": 5.5}, {"logit_bias": {3: -100, 12: 5.5}}),
    "presence_penalty": (1, {"presence_penalty": 1}),
    "frequency_penalty": (-0.5, {"frequency_penalty": -0.5}),
    "top_k": (40, {"top_k": 40}),
    "min_p": (0.05, {"min_p": 0.05}),
    "repetition_penalty": (1.1, {"repetition_penalty": 1.1}),
    "repetition_context_size": (64, {"repetition_context_size": 64}),
    "min_tokens": (2, {"min_tokens": 2}),
}
IMAGES = {
    "image_size": (512, {"image_size": 512}),
    "frames": (4, {"frames": 4}),
    "fps": (2, {"fps": 2}),
    "max_frames": (4, {"max_frames": 4}),
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
HONOURED = {
    chat: {
        **SAMPLING,
        **IMAGES,
        "max_tokens": (5, {"max_tokens": 5}),
        "max_completion_tokens": (6, {"max_tokens": 6}),
        "logprobs": (True, {"logprobs": True, "top_logprobs": 0}),
        "response_format": ({"type": "json_schema", "json_schema": {"schema": SCHEMA}}, {"json_schema": SCHEMA}),
    },
    completions: {
        **SAMPLING,
        **IMAGES,
        "max_tokens": (5, {"max_tokens": 5}),
        "logprobs": (2, {"logprobs": True, "top_logprobs": 2}),
    },
    responses: {
        **SAMPLING,
        **IMAGES,
        "max_output_tokens": (5, {"max_tokens": 5}),
        "include": ([responses.LOGPROBS], {"logprobs": True, "top_logprobs": 0}),
        "top_logprobs": (3, {"logprobs": True, "top_logprobs": 3}),
        "text": ({"format": {"type": "json_schema", "schema": SCHEMA}}, {"json_schema": SCHEMA}),
    },
    decisions: IMAGES,
}
# What shows elsewhere: tests of this folder, by the field.
ELSEWHERE = {
    chat: {"messages", "model", "n", "stream", "stream_options", "top_logprobs"},
    completions: {"prompt", "model", "n", "stream", "stream_options"},
    responses: {"input", "model", "instructions", "stream", "stream_options", "metadata"},
    decisions: {"choices", "question", "image", "images", "messages", "model"},
}


@pytest.mark.parametrize("dialect", DIALECTS, ids=name_of)
def test_every_honoured_field_has_a_test(dialect):
    honoured = {name for name, decision in dialect.FIELDS.items() if isinstance(decision, Honoured)}
    assert honoured == set(HONOURED[dialect]) | ELSEWHERE[dialect]
    assert not set(HONOURED[dialect]) & ELSEWHERE[dialect]


@pytest.mark.parametrize(
    ("dialect", "name"),
    [pytest.param(d, name, id=f"{name_of(d)}-{name}") for d in DIALECTS for name in HONOURED[d]],
)
def test_honoured(dialect, name):
    value, options = HONOURED[dialect][name]
    plain = dialect.read(PLAIN[dialect], SERVED)
    given = dialect.read({**PLAIN[dialect], name: value}, SERVED)
    assert given.options == {**plain.options, **options}
    assert given.options != plain.options


def test_top_logprobs():
    assert chat.read(says(logprobs=True, top_logprobs=5), SERVED).options["top_logprobs"] == 5
    refusal(chat.read, says(top_logprobs=5), param="top_logprobs")
    refusal(chat.read, says(logprobs=True, top_logprobs=21), param="top_logprobs")


@pytest.mark.parametrize("dialect", DIALECTS, ids=name_of)
def test_models(dialect):
    for name in ("demo", "fastvlm", None):
        assert dialect.read({**PLAIN[dialect], "model": name}, SERVED) == dialect.read(PLAIN[dialect], SERVED)
    for name in ("gpt-6", "", "../demo", "demo\n", "/etc", "x" * 10_000):
        error = refusal(dialect.read, {**PLAIN[dialect], "model": name}, param="model")
        assert (error.status, error.code) == (404, "model_not_found")
        assert len(error.message) < 500
    refusal(dialect.read, {**PLAIN[dialect], "model": 3}, param="model")


def test_a_decision_samples_nothing():
    for name in ("temperature", "top_k", "min_p", "repetition_penalty", "min_tokens"):
        assert "samples nothing" in refusal(decisions.read, {**PLAIN[decisions], name: 0.5}, param=name).message


def test_lengths():
    assert chat.read(says(), SERVED).options["max_tokens"] == SERVED.limits.default_max_tokens
    assert chat.read(says(max_tokens=7, max_completion_tokens=7), SERVED).options["max_tokens"] == 7
    refusal(chat.read, says(max_tokens=7, max_completion_tokens=8), param="max_completion_tokens")
    for value in (0, -1, SERVED.limits.max_tokens + 1, 1.5, "7"):
        for name in ("max_tokens", "max_completion_tokens"):
            refusal(chat.read, says(**{name: value}), param=name)
    assert chat.read(says(min_tokens=2000), SERVED).options["max_tokens"] == 2000


def test_stops():
    read = chat.read
    assert read(says(stop=["a", "b"]), SERVED).options["stop"] == ["a", "b"]
    assert "stop" not in read(says(stop=[]), SERVED).options
    for value in ("", [""], ["a", 1], 5, {"a": 1}, ["a"] * 17, ["a" * 501], [None]):
        refusal(read, says(stop=value), param="stop")


def test_biases():
    for value in ([], "a", {"a": 1}, {"-1": 1}, {"1.0": 1}, {" 1": 1}, {"\u0661": 1}, {"9" * 10: 1}):
        refusal(chat.read, says(logit_bias=value), param="logit_bias")
    for value in ("1", None, True, [], 10**400):
        refusal(chat.read, says(logit_bias={"1": value}), param="logit_bias.1")
    refusal(chat.read, says(logit_bias={str(i): 1 for i in range(1025)}), param="logit_bias")


def test_counts():
    assert chat.read(says(n=3), SERVED).n == 3
    for value in (0, -1, 17, True, "2", 1.5):
        refusal(chat.read, says(n=value), param="n")


FORMATS = [
    ({"type": "text"}, None),
    ({"type": "json_object"}, {"type": "object"}),
    ({"type": "json_schema", "json_schema": {"name": "output", "schema": SCHEMA}}, SCHEMA),
    ({"type": "json_schema", "json_schema": {"name": "output", "schema": SCHEMA, "strict": True}}, SCHEMA),
    ({"type": "json_schema", "json_schema": {"name": "output", "schema": SCHEMA, "strict": False}}, SCHEMA),
    ({"type": "json_schema", "json_schema": {"name": "output"}}, {"type": "object"}),
]


@pytest.mark.parametrize(("format", "schema"), FORMATS)
def test_formats(format, schema):
    assert chat.read(says(response_format=format), SERVED).options.get("json_schema") == schema
    flat = {"type": format["type"], **format.get("json_schema", {})}
    body = {"input": "Hi", "text": {"format": flat}}
    assert responses.read(body, SERVED).options.get("json_schema") == schema


@pytest.mark.parametrize(
    ("format", "param"),
    [
        ("json", "response_format"),
        ({"type": "xml"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": []}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"schema": "{}"}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "strict": "yes"}}, "response_format.json_schema.strict"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "name": 5}}, "response_format.json_schema.name"),
    ],
)
def test_wrong_formats(format, param):
    refusal(chat.read, says(response_format=format), param=param)


def test_streams():
    for dialect in (chat, completions):
        plain = PLAIN[dialect]
        assert not dialect.read(plain, SERVED).stream
        ask = dialect.read({**plain, "stream": True, "stream_options": {"include_usage": True}}, SERVED)
        assert (ask.stream, ask.include_usage) == (True, True)
        assert not dialect.read({**plain, "stream": True, "stream_options": {}}, SERVED).include_usage
        refusal(dialect.read, {**plain, "stream_options": {"include_usage": True}}, param="stream_options")
        refusal(dialect.read, {**plain, "stream": "yes"}, param="stream")
    assert responses.read({"input": "Hi", "stream": True}, SERVED).stream


def test_what_openai_calls_a_detail():
    types = pytest.importorskip(
        "openai.types.chat.chat_completion_content_part_image_param", reason="needs openai, of the extra test"
    )
    details = typing.get_args(typing.get_type_hints(types.ImageURL)["detail"])
    for detail in details:
        assert chat.read(says([image_part(data_uri(), detail=detail)]), SERVED)
