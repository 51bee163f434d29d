"""Bodies: what is JSON, what is of the wrong type, and who says so."""

import json

import pytest

from mlx_fastvlm.server.dialect import chat, completions, decisions, fields, responses
from mlx_fastvlm.server.dialect.errors import RequestError
from mlx_fastvlm.server.dialect.fields import Fields, parse
from tests.server.dialect.bodies import DIALECTS, PLAIN, SERVED, name_of, refusal, says

BAD = {
    "not JSON": (b"{", "not JSON"),
    "nothing": (b"", "not JSON"),
    "no UTF-8": (b'{"a": "\xff"}', "not JSON"),
    "a list": (b"[]", "an object|a JSON object"),
    "null": (b"null", "a JSON object, got null"),
    "not a number": (b'{"temperature": NaN}', "NaN"),
    "infinity": (b'{"temperature": -Infinity}', "Infinity"),
    "a number without end": (b'{"seed": ' + b"9" * 5000 + b"}", "not JSON"),
    "a deep list": (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "deep"),
    "a very deep list": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep"),
    "deep objects": (b'{"a":' * 1000 + b"1" + b"}" * 1000, "deep"),
    "many values": (b'{"a": [' + b"0," * 200_001 + b"0]}", "more than 200000 values"),
    "many lists": (b'{"a": [' + b"[]," * 100_001 + b"0]}", "more than 200000 values"),
}


@pytest.mark.parametrize("case", BAD)
def test_bodies_that_are_no_object(case):
    body, words = BAD[case]
    with pytest.raises(RequestError, match=words) as raised:
        parse(body)
    assert raised.value.status == 400
    assert raised.value.message.isprintable()


def test_a_body():
    body = {"messages": [{"role": "user", "content": "Grüße \N{SNOWMAN}, " * 1000}], "temperature": 1e3, "seed": 2**62}
    assert parse(json.dumps(body).encode()) == body
    assert parse(json.dumps(body, ensure_ascii=False).encode()) == body


def test_depth_counts_from_the_body():
    nested = 0
    for _ in range(fields.MAX_DEPTH - 1):
        nested = [nested]
    assert parse(json.dumps({"a": nested}).encode()) == {"a": nested}
    with pytest.raises(RequestError, match="deep"):
        parse(json.dumps({"a": [nested]}).encode())


WRONG = {
    "text": [1, 1.5, True, [], {}],
    "whole": ["1", 1.5, True, [], {}, float("inf")],
    "number": ["1", True, [], {}, float("inf"), 10**400],
    "flag": [0, 1, "true", [], {}],
    "items": [1, "a", {}],
    "inner": [1, "a", []],
}


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in WRONG.items() for value in values])
def test_wrong_types_name_their_field(kind, value):
    with pytest.raises(RequestError, match=r"^a\.b must be .*\.$") as raised:
        getattr(Fields({"b": value}, "a."), kind)("b")
    assert raised.value.param == "a.b"


@pytest.mark.parametrize("kind", WRONG)
def test_null_is_not_given(kind):
    for body in ({"b": None}, {}):
        assert getattr(Fields(body), kind)("b") is None


def test_whole_numbers():
    assert Fields({"a": 3.0}).whole("a") == 3  # as JavaScript may write it
    assert isinstance(Fields({"a": 3.0}).whole("a"), int)
    for value in (0, 11, -(10**30), 1e300):
        with pytest.raises(RequestError, match=r"at (least|most)"):
            Fields({"a": value}).whole("a", 1, 10)


BROKEN = {
    chat: says("\ud83d"),
    completions: {"prompt": ["Hi", "\ud83d"]},
    responses: {"input": "\ud83d"},
    decisions: {"question": "Is it red?", "choices": ["Yes", "\ud83d"]},
}


@pytest.mark.parametrize("dialect", DIALECTS, ids=name_of)
def test_half_a_character(dialect):
    """JSON can hold it; no tokenizer takes it."""
    assert "surrogate" in refusal(dialect.read, BROKEN[dialect]).message


@pytest.mark.parametrize("dialect", DIALECTS, ids=name_of)
def test_null_everywhere(dialect):
    body = PLAIN[dialect]
    nothing = dict.fromkeys([*dialect.FIELDS, "unknown"])
    assert dialect.read({**nothing, **body}, SERVED) == dialect.read(body, SERVED)
