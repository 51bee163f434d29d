"""Any body at all: it is read, or refused in the dialect's own words; nothing else comes out."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_fastvlm.errors import UsageError
from mlx_fastvlm.generation.options import GenerationOptions
from mlx_fastvlm.server.dialect import errors
from mlx_fastvlm.server.dialect.ask import Ask
from mlx_fastvlm.server.dialect.errors import RequestError
from mlx_fastvlm.server.dialect.fields import parse
from tests.server.dialect.bodies import DIALECTS, PLAIN, SERVED, data_uri, name_of, served

WORDS = ["user", "system", "tool", "text", "image_url", "input_text", "json_schema", "low", "auto", "none", "-", "demo"]
ADDRESSES = [data_uri(), "data:,", "http://a.example/", "/etc/passwd", "../a", "file:///a", "<image>", "\ud83d", "\0"]
NUMBERS = st.integers() | st.floats() | st.integers(-3, 3) | st.sampled_from([10**400, -0.0, 2**63])
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=8) | st.sampled_from(WORDS + ADDRESSES)
NAMES = st.sampled_from(["role", "content", "type", "text", "url", "image_url", "detail", "schema", "format", "1"])
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=4), inner, max_size=4)
)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "video_url", "input_text", "input_image", "output_text"])},
    optional={
        "text": st.text(max_size=5) | LEAVES,
        "image_url": st.fixed_dictionaries({"url": LEAVES}, optional={"detail": LEAVES}) | LEAVES,
        "video_url": st.fixed_dictionaries({"url": LEAVES}) | LEAVES,
    },
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(WORDS), "content": st.lists(PARTS, max_size=3) | LEAVES}) | VALUES,
    max_size=3,
)
SERVERS = [SERVED, served(allow_urls=True, max_images=2, max_tokens=10), served(image_root=".", max_n=2)]


def bodies(dialect):
    names = [*dialect.FIELDS, "other"]
    fields = st.dictionaries(st.sampled_from(names), VALUES | MESSAGES, max_size=4)
    return fields.map(lambda given: {**PLAIN[dialect], **given}) | fields


def check(error, *statuses):
    """That a client can be told so."""
    assert error.status in statuses
    assert error.message.isprintable()
    assert len(error.message) < 1500
    assert len(error.param or "") < 200
    json.dumps(error.body, allow_nan=False).encode()


@pytest.mark.parametrize("dialect", DIALECTS, ids=name_of)
@settings(max_examples=80)
@given(st.data())
def test_any_body(dialect, data):
    body, to = data.draw(bodies(dialect)), data.draw(st.sampled_from(SERVERS))
    try:
        ask = dialect.read(body, to)
    except RequestError as error:
        check(error, 400, 404)
        return
    assert isinstance(ask, Ask)
    assert 1 <= ask.n * len(ask.prompts) <= to.limits.max_n
    assert ask.options.get("max_tokens", 1) <= to.limits.max_tokens
    json.dumps(ask.about, allow_nan=False).encode()
    dialect.Writer(ask, to).begin()
    try:
        GenerationOptions(
            **{name: value for name, value in ask.options.items() if name not in ("json_schema", "video")}
        )
    except UsageError as error:
        check(errors.from_preparing(error), 400)


LONG = '\n\u202e"x' * 250_000


def places(value):
    """Every place in a body that a value can be put into, its own names too."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from places(value[key])


NESTED = {"type": "json_schema", "json_schema": {"schema": {}}, "format": {"type": "text"}, "include_usage": True}
PART = {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}}
MESSAGE = {"role": "user", "content": [PART]}
FULL = {"messages": [MESSAGE], "input": [MESSAGE], "images": [PART["image_url"]], "stop": ["a"], "metadata": {"a": "b"}}


@pytest.mark.parametrize("dialect", DIALECTS, ids=name_of)
def test_a_book_in_any_place_is_not_sent_back(dialect):
    for name in dialect.FIELDS:
        body = json.dumps({**PLAIN[dialect], name: FULL.get(name, NESTED)})
        for place in range(len(list(places(json.loads(body))))):
            value, key_too = json.loads(body), json.loads(body)
            holder, key = list(places(value))[place]
            holder[key] = LONG
            holder, key = list(places(key_too))[place]
            if isinstance(holder, dict):
                holder[LONG] = holder.pop(key)
            for changed in (value, key_too):
                error = refused(dialect, changed)
                if error is not None:
                    check(error, 400, 404)


def refused(dialect, body):
    try:
        dialect.read(body, SERVED)
    except RequestError as error:
        return error
    return None


@settings(max_examples=100)
@given(st.binary(max_size=50) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes(data):
    try:
        assert isinstance(parse(data), dict)
    except RequestError as error:
        check(error, 400)


def test_what_changes_nothing_changes_nothing():
    """The body itself stays as it was: the log may still want it."""
    for dialect in DIALECTS:
        body = json.loads(json.dumps(PLAIN[dialect]))
        dialect.read(body, SERVED)
        assert body == PLAIN[dialect]
