"""What a record says of an answer."""

import pytest

from mlx_fastvlm import Answer, GenerationOptions, GenerationResponse
from mlx_fastvlm.generation.outcomes import Pending, Texts, outcome_of_error


def ended(*texts, reason="stop", error=None):
    """An answer of these pieces."""
    answer = Answer(None, 7)
    for number, text in enumerate(texts, 1):
        last = number == len(texts)
        answer.deliver(GenerationResponse(text, 0, reason if last else None, 7, 0, 1.0, number, 1.0, 1.0, 1.0))
    answer.end(error)
    return Pending(answer)


def outcome(pending, **options):
    return Texts(None, GenerationOptions(**options)).outcome(pending)


def test_a_text():
    assert outcome(ended("a", "", "b", reason="length")) == {
        "text": "ab",
        "finish_reason": "length",
        "prompt_tokens": 7,
        "generation_tokens": 3,
    }


@pytest.mark.parametrize(("text", "found"), [('{"a":1}', {"json": {"a": 1}}), ('{"a":', {"text": '{"a":'})])
def test_json_where_it_is_whole(text, found):
    assert found.items() <= outcome(ended(text), json_schema={"type": "object"}).items()
    assert outcome(ended(text))["text"] == text


def test_what_was_cut_is_no_json_though_it_may_look_like_some():
    found = outcome(ended("12", reason="length"), json_schema={"type": "integer"})  # of 1234, perhaps
    assert (found["text"], found["finish_reason"]) == ("12", "length")
    assert "json" not in found


def test_an_error_is_one_line():
    assert outcome(ended("a", error=ValueError("one\n  line"))) == {"error": "one line"}
    assert outcome_of_error(RuntimeError("x"))["error"] == "RuntimeError: x"
    assert outcome_of_error(ValueError())["error"] == "ValueError: "


def test_an_answer_in_the_making_has_no_outcome():
    class Driver:
        pass

    pending = Pending(Answer(Driver(), 7))
    assert outcome(pending) is None
